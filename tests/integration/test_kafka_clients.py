"""What only Kafka has: two clients that must agree, and its own tools."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import confluent_kafka
import pytest
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.coordinator.assignors.abstract import ConsumerProtocolAssignment
from kafka.coordinator.assignors.range import RangePartitionAssignor

from deploy.local.ports import reserve
from outbox.broker import KafkaSettings, Message, open_kafka
from outbox.broker.confluent import ConfluentBroker
from outbox.broker.kafka_python import KafkaPythonBroker
from outbox.errors import BrokerError, BrokerUnavailable, Fenced, MessageRefused, SettingsError
from tests.conformance.brokers import WAIT_S, by_key, collect, earliest, first_times, numbered, poll_until
from tests.relaying import until

KEYS = [f"stream-{i}" for i in range(40)] + ["ünï-çødé", "日本語-1", "🙂-🙃", "x", "ab", "abc", "\u00ff" * 5]
CLIENTS = ("kafka-python", "confluent")


@pytest.fixture
def bootstrap(address: Callable[[str], str]) -> str:
    return address("kafka")


@pytest.fixture
def topic() -> str:
    return f"t{uuid.uuid4().hex[:12]}.entity"


@pytest.fixture
def tight(bootstrap: str, topic: str) -> str:
    """A topic that itself refuses more than 20,000 bytes; no client knows of it."""
    how = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "20000"}}
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_topics({topic: how})
    return topic


def settings(bootstrap: str, client: str = "auto", **more) -> KafkaSettings:
    return KafkaSettings(bootstrap, client=client, **{"compression": "gzip", "session_timeout_s": 6.0} | more)


def test_a_key_has_one_partition_whichever_client_publishes_it_and_as_other_kafka_clients_have_it(
    bootstrap, topic, tidy
) -> None:
    ours = []
    for client in CLIENTS:
        ours.append([])
        own = tidy(tidy(open_kafka(settings(bootstrap, client))).producer())
        for key in KEYS:
            ours[-1] += [place.partition for place in own.publish([Message(topic, key, b"")])]
    theirs: list[int] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for key in KEYS:
        producer.produce(
            topic, b"", key.encode(), on_delivery=lambda _error, message: theirs.append(message.partition())
        )
        assert producer.flush(30) == 0
    assert ours == [theirs, theirs]
    assert len(set(theirs)) > 6


def test_topics_are_made_with_the_partitions_set(bootstrap, topic, tidy) -> None:
    for client, partitions in zip(CLIENTS, (3, 5), strict=True):
        broker = tidy(open_kafka(settings(bootstrap, client, partitions=partitions)))
        tidy(broker.producer()).publish([Message(f"{topic}.{client}", "a", b"")])
        assert len(broker.ends([f"{topic}.{client}"])) == partitions


def test_a_group_may_have_members_of_both_clients(bootstrap, topic, tidy) -> None:
    brokers = [tidy(open_kafka(settings(bootstrap, client, partitions=4))) for client in CLIENTS]
    members = [tidy(broker.consumer(topic, [topic], earliest)) for broker in brokers]
    poll_until(lambda: [len(m.assignment()) for m in members] == [2, 2], *members)
    assert not members[0].assignment() & members[1].assignment()


@pytest.mark.parametrize("client", CLIENTS)
def test_commits_are_seen_by_kafkas_own_tools(bootstrap, topic, client, tidy) -> None:
    broker = tidy(open_kafka(settings(bootstrap, client, partitions=1)))
    tidy(broker.producer()).publish(numbered(topic, 20))
    consumer = tidy(broker.consumer(topic, [topic], earliest))
    collect(consumer, 20)
    consumer.commit(dict.fromkeys(consumer.assignment(), 17))
    admin = tidy(KafkaAdminClient(bootstrap_servers=bootstrap))
    seen: list[int] = []

    def committed() -> bool:
        seen[:] = [at.offset for at in admin.list_group_offsets([topic])[topic].values()]
        return seen == [17]

    poll_until(committed, consumer)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_topic_itself_refuses_is_refused_with_its_index(bootstrap, tight, client, tidy) -> None:
    broker = tidy(open_kafka(settings(bootstrap, client, compression="none")))
    producer = tidy(broker.producer())
    other = [Message(f"{tight}.other", f"k{i % 9}", f"{i}".encode()) for i in range(60)]
    large = Message(tight, "a", b"x" * 100_000)
    producer.publish([Message(tight, "a", b"x" * 10_000)])
    with pytest.raises(MessageRefused) as refusal:
        producer.publish([*other[:20], Message(tight, "a", b"0"), large, Message(tight, "a", b"1"), *other[20:]])
    assert refusal.value.index == 21
    producer.publish([Message(tight, "a", b"1"), *other[20:]])
    ends = sum(broker.ends([tight, f"{tight}.other"]).values())
    found = by_key(collect(tidy(broker.consumer(tight, [tight, f"{tight}.other"], earliest)), ends))
    assert first_times(found.pop("a"))[1:] == [b"0", b"1"]
    assert {k: first_times(v) for k, v in found.items()} == by_key(other)


class Waiting(Message):
    """A message that is handed over when the client takes no more."""

    client: Any = None

    @property
    def headers(self):
        with suppress(confluent_kafka.KafkaException):
            until(lambda: self.client._producer.produce("elsewhere", b"", b"", 0))
        return []


@pytest.fixture
def narrow(bootstrap, tight, monkeypatch, tidy):
    """A producer with little room, and a topic that takes less than it would send."""
    monkeypatch.setattr("outbox.broker.confluent_producer.QUEUE_KIB_MAX", 500)
    return tidy(tidy(open_kafka(settings(bootstrap, "confluent", compression="none", linger_ms=1))).producer())


def test_what_a_topic_itself_refuses_is_found_while_a_batch_waits_for_room(narrow, topic) -> None:
    large = Message(topic, "a", b"x" * 100_000)
    batch = [Message(topic, "a", b"x" * 10_000) for _ in range(200)]
    for _ in range(3):
        with pytest.raises(MessageRefused) as refusal:
            narrow.publish([*batch[:2], large, *batch[2:]])
        assert refusal.value.index == 2


def test_what_a_topic_itself_refuses_is_found_while_a_batch_is_handed_over(narrow, topic) -> None:
    behind = Waiting(topic, "a", b"1")
    behind.client = narrow
    for _ in range(3):
        with pytest.raises(MessageRefused) as refusal:
            narrow.publish([Message(topic, "a", b"0"), Message(topic, "a", b"x" * 100_000), behind])
        assert refusal.value.index == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_topic_itself_refuses_is_undone_with_its_transaction_and_named(bootstrap, tight, client, tidy) -> None:
    broker = tidy(open_kafka(settings(bootstrap, client, compression="none")))
    one = tidy(broker.transactions(f"{tight}.__relay"))
    one.recover()
    small = [Message(tight, "a", b"%d" % i + b"x" * 1_000) for i in range(60)]
    one.publish(small, lambda places: b"more than one batch of the tight's takes")
    batch = [*small[:33], Message(tight, "a", b"x" * 100_000), *small[33:]]
    for index in (33, 33):
        with pytest.raises(MessageRefused) as refusal:
            one.publish(batch, lambda places: b"never")
        assert refusal.value.index == index
    one.publish([Message(tight, "b", b"last")], lambda places: b"last")
    consumer = tidy(broker.consumer(tight, [tight], earliest))
    assert by_key(collect(consumer, 61)) == {"a": [m.value for m in small], "b": [b"last"]}
    assert tidy(broker.transactions(f"{tight}.__relay")).recover() == b"last"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("other", CLIENTS)
def test_what_a_dead_publisher_left_open_is_undone_and_cannot_be_committed_when_it_wakes(
    bootstrap, topic, client, other, tidy
) -> None:
    broker, another = (tidy(open_kafka(settings(bootstrap, name))) for name in (client, other))
    dead, woken = tidy(broker.transactions(f"{topic}.__relay")), topic
    dead.recover()
    dead.publish(numbered(topic, 5), lambda places: b"before")
    left: list[object] = []

    def halted(places):
        """All is sent and nothing committed: another one takes over."""
        left.append(places)
        successor = tidy(another.transactions(f"{topic}.__relay"))
        assert successor.recover() == b"before"
        successor.publish([Message(topic, woken, b"after")], lambda places: b"after")
        return b"zombie"

    with pytest.raises((Fenced, BrokerUnavailable)):
        dead.publish(numbered(topic, 50), halted)
    assert left
    consumer = tidy(broker.consumer(topic, [topic], earliest))
    found = [d.value for d in collect(consumer, 6)]
    assert list(consumer.poll(10, 1.0)) == []
    assert sorted(found) == sorted([*(m.value for m in numbered(topic, 5)), b"after"])
    assert tidy(broker.transactions(f"{topic}.__relay")).recover() == b"after"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_note_that_was_written_and_not_committed_is_not_read(bootstrap, topic, client, monkeypatch, tidy) -> None:
    broker = tidy(open_kafka(settings(bootstrap, client)))
    dead = tidy(broker.transactions(f"{topic}.__relay"))
    dead.recover()
    dead.publish(numbered(topic, 1), lambda places: b"committed")

    def die() -> None:
        raise SystemExit

    monkeypatch.setattr(dead._client, "commit", die)
    with pytest.raises(SystemExit):
        dead.publish(numbered(topic, 1), lambda places: b"undone")
    assert tidy(broker.transactions(f"{topic}.__relay")).recover() == b"committed"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_group_without_a_server_says_so_while_it_waits_and_goes_on_after_it(topic, client, tidy) -> None:
    """See also ``test_brokers_crash``: here no message comes that could tell."""
    from deploy.local.local import Local

    with Local() as local:
        server = local.start("kafka")[0]
        broker = tidy(open_kafka(settings(server.address, client, timeout_s=3.0)))
        consumer = tidy(broker.consumer(topic, [topic], earliest))
        poll_until(lambda: bool(consumer.assignment()), consumer)
        server.kill()
        with pytest.raises(BrokerUnavailable, match=server.address):
            poll_until(lambda: False, consumer)
        local.restart("kafka")
        tidy(tidy(open_kafka(settings(server.address, client))).producer()).publish(numbered(topic, 5))
        assert len(eventually(consumer, 5)) == 5


def eventually(consumer, count: int):
    found = []

    def enough() -> bool:
        try:
            found.extend(consumer.poll(count, 1.0))
        except BrokerUnavailable:
            return False
        return len(found) >= count

    poll_until(enough)
    return found


def test_auto_takes_confluent_if_it_is_there(bootstrap, monkeypatch) -> None:
    assert isinstance(open_kafka(settings(bootstrap)), ConfluentBroker)
    monkeypatch.setattr("outbox.broker.kafka.find_spec", lambda _name: None)
    assert isinstance(open_kafka(settings(bootstrap)), KafkaPythonBroker)


def test_a_missing_client_is_named_with_what_to_install(bootstrap, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SettingsError, match="pip install"):
        open_kafka(settings(bootstrap, "confluent"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": "java"},
        {"compression": "rar"},
        {"partitions": 0},
        {"timeout_s": 0},
        {"bootstrap": " "},
        *({"member": name} for name in ("", ".", "..", "a b", "pod-0\n", "ä", "x" * 250)),
    ],
)
def test_a_wrong_setting_is_named(wrong) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        KafkaSettings(**{"bootstrap": "localhost:9092"} | wrong)


@pytest.mark.parametrize("name", ["0", "shop-projector-0", "host.example_1", "...", "x" * 249])
def test_names_of_pods_and_hosts_can_be_a_members(name) -> None:
    assert KafkaSettings("localhost:9092", member=name).member == name


@pytest.mark.parametrize("session_timeout_s", [1.0, 3_000.0])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_session_that_the_servers_do_not_allow_is_a_settings_error(
    bootstrap, topic, client, session_timeout_s, tidy
) -> None:
    """It was warned of and asked for again for ever, under the servers' own words for it."""
    broker = tidy(open_kafka(settings(bootstrap, client, session_timeout_s=session_timeout_s)))
    consumer = tidy(broker.consumer(topic, [topic], earliest))
    said = rf"kafka\.session_timeout_s is {session_timeout_s:g}, .*group\.min\.session\.timeout\.ms"
    with pytest.raises(SettingsError, match=said):
        poll_until(lambda: False, consumer)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_security_option_nobody_knows_is_a_settings_error(bootstrap, topic, client, tidy) -> None:
    with pytest.raises(SettingsError):
        broker = tidy(open_kafka(settings(bootstrap, client, security={"no.such.option": "x"})))
        tidy(broker.producer()).publish(numbered(topic, 1))


def test_librdkafka_writes_to_the_log_and_not_to_standard_error(topic, capfd, caplog) -> None:
    held = reserve(1)
    broker = open_kafka(settings(f"127.0.0.1:{held.ports[0]}", "confluent", timeout_s=2.0))
    with caplog.at_level(logging.INFO), pytest.raises(BrokerUnavailable):
        broker.consumer(topic, [topic], earliest)
    held.close()
    assert capfd.readouterr().err == ""
    assert isinstance(broker, ConfluentBroker)


def test_a_codec_without_its_library_is_said_to_be_missing(bootstrap, topic, monkeypatch, capsys, tidy) -> None:
    monkeypatch.setitem(
        __import__("outbox.broker.kafka_python_errors", fromlist=["CODECS"]).CODECS, "lz4", (lambda: False, "lz4")
    )
    producer = tidy(tidy(open_kafka(settings(bootstrap, "kafka-python", compression="lz4"))).producer())
    assert sum(last + 1 for last in producer.publish(numbered(topic, 3)).values()) == 3
    assert "pip install lz4" in capsys.readouterr().out


def test_a_consumer_without_the_codecs_library_says_which_to_install(bootstrap, topic, monkeypatch, tidy) -> None:
    packing = tidy(open_kafka(settings(bootstrap, "confluent", compression="lz4", partitions=1)))
    tidy(packing.producer()).publish(numbered(topic, 500, keys=1))
    for name in ("lz4", "lz4f", "lz4framed"):
        monkeypatch.setattr(f"kafka.codec.{name}", None)
    monkeypatch.setattr("kafka.record.default_records.codecs.has_lz4", lambda: False, raising=False)
    broker = tidy(open_kafka(settings(bootstrap, "kafka-python")))
    consumer = tidy(broker.consumer(topic, [topic], earliest))
    with pytest.raises(BrokerError, match="lz4"):
        poll_until(lambda: False, consumer)


class NoPartitions(RangePartitionAssignor):
    """Assigns as kafka-python does that leads a group and does not know the partitions of any topic yet."""

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> Any:
        return {member.member_id: ConsumerProtocolAssignment(cls.version, [], b"") for member in members}


def test_a_named_member_of_kafka_python_that_went_before_it_had_partitions_is_given_them_when_it_comes_back(
    bootstrap, topic, tidy
) -> None:
    """Kafka gives a name what it had, and that was nothing."""
    broker = tidy(KafkaPythonBroker(settings(bootstrap, "kafka-python", member="pod-0", partitions=3)))
    broker.consumer("another", [topic], earliest).close()
    first: Any = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=topic,
        group_instance_id="pod-0",
        partition_assignment_strategy=(NoPartitions,),
        metrics_enabled=False,
    )
    first.subscribe([topic])
    deadline = time.monotonic() + WAIT_S
    while first.group_metadata().generation_id < 1:
        assert time.monotonic() < deadline
        first.poll(100)
    first.close()
    member = tidy(broker.consumer(topic, [topic], earliest))
    poll_until(lambda: len(member.assignment()) == 3, member)
