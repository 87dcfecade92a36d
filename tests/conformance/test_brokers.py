"""What every broker must do, on the real servers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.local.ports import reserve
from outbox.broker import Broker, Consumer, Message, Producer, TopicPartition
from outbox.errors import BrokerError, BrokerUnavailable, MessageRefused
from tests.conformance.brokers import (
    WAIT_S,
    Kind,
    by_key,
    collect,
    earliest,
    numbered,
    poll_until,
)
from tests.conftest import Tidy

Join = Callable[..., Consumer]


@pytest.fixture
def producer(broker: Broker, tidy: Tidy) -> Producer:
    return tidy(broker.producer())


@pytest.fixture
def group() -> str:
    return f"g{uuid.uuid4().hex[:12]}"


@pytest.fixture
def join(broker: Broker, group: str, topic: str, tidy: Tidy) -> Join:
    """Make a member."""

    def member(start=earliest, group: str = group, broker: Broker = broker) -> Consumer:
        return tidy(broker.consumer(group, [topic], start))

    return member


def test_messages_of_one_key_keep_their_order_and_their_partition(producer, join, topic) -> None:
    messages = numbered(topic, 200)
    producer.publish(messages[:150])
    producer.publish(messages[150:])
    found = collect(join(), 200)
    assert by_key(found) == {f"stream-{k}": [m.value for m in messages if m.key == f"stream-{k}"] for k in range(7)}
    assert all(len({d.partition for d in found if d.key == key}) == 1 for key in by_key(found))


def test_places_are_the_last_offset_of_each_partition_written_to(producer, join, topic) -> None:
    first, second = producer.publish(numbered(topic, 100)), producer.publish(numbered(topic, 3, keys=1))
    found = collect(join(), 103)
    reached = {
        partition: max(d.offset for d in found if (d.topic, d.partition) == partition)
        for partition in {(d.topic, d.partition) for d in found}
    }
    assert {**first, **second} == reached
    assert len(second) == 1
    assert all(first[partition] == last - 3 for partition, last in second.items())


def test_ten_thousand_messages_come_exactly_once(producer, join, topic) -> None:
    messages = numbered(topic, 10_000, keys=300)
    producer.publish(messages)
    consumer = join()
    found = collect(consumer, 10_000)
    assert sorted(d.value for d in found) == sorted(m.value for m in messages)
    assert list(consumer.poll(10, 0.5)) == []


def test_publishing_nothing_does_nothing(producer) -> None:
    assert dict(producer.publish([])) == {}


def test_a_partition_starts_where_it_is_told_to(producer, join, topic) -> None:
    placed = producer.publish(numbered(topic, 100, keys=20))
    ends = {tp: last + 1 for tp, last in placed.items()}
    asked: set[TopicPartition] = set()

    def halfway(partition: TopicPartition) -> int:
        asked.add(partition)
        return ends.get(partition, 0) // 2

    expected = sum(end - end // 2 for end in ends.values())
    consumer = join(halfway)
    found = collect(consumer, expected)
    assert all(d.offset >= ends[TopicPartition(d.topic, d.partition)] // 2 for d in found)
    assert asked == consumer.assignment()
    assert list(consumer.poll(10, 0.5)) == []


def test_an_offset_that_is_gone_means_the_earliest(producer, join, topic) -> None:
    placed = producer.publish(numbered(topic, 20))
    found = collect(join(lambda _partition: 1_000_000), 20)
    every = {(tp.partition, at) for tp, last in placed.items() for at in range(last + 1)}
    assert {(d.partition, d.offset) for d in found} == every


def test_a_failing_start_is_raised_by_poll_and_asked_again(producer, join, topic) -> None:
    producer.publish(numbered(topic, 20))
    failing = [True]

    def start(_partition: TopicPartition) -> None:
        if failing[0]:
            raise BrokerError("the checkpoint cannot be read")

    consumer = join(start)
    with pytest.raises(BrokerError, match="checkpoint"):
        poll_until(lambda: False, consumer)
    failing[0] = False
    assert len(collect(consumer, 20)) == 20


def test_groups_do_not_feel_each_other(producer, join, topic) -> None:
    producer.publish(numbered(topic, 50))
    one, other = join(group=f"a-{topic}"), join(group=f"b-{topic}")
    assert by_key(collect(one, 50)) == by_key(collect(other, 50))


def test_two_members_share_the_partitions_and_the_last_takes_over_all(producer, join, topic) -> None:
    first, second = join(), join()
    shared = poll_until(lambda: len(first.assignment()) == len(second.assignment()) == 2, first, second)
    assert shared == []
    assert not first.assignment() & second.assignment()
    messages = numbered(topic, 60, keys=40)
    producer.publish(messages)
    one, other = collect_of_both(first, second, 60)
    assert {d.partition for d in one}.isdisjoint(d.partition for d in other)
    assert one
    assert other
    second.close()
    poll_until(lambda: len(first.assignment()) == 4, first)


def collect_of_both(first: Consumer, second: Consumer, count: int):
    one, other = [], []
    until_s = time.monotonic() + WAIT_S
    while len(one) + len(other) < count:
        assert time.monotonic() < until_s
        one += first.poll(count, 0.2)
        other += second.poll(count, 0.2)
    return one, other


def test_a_killed_member_gives_up_its_partitions(kind, where, producer, join, group, topic) -> None:
    consumer = join()
    poll_until(lambda: len(consumer.assignment()) == 4, consumer)
    command = [sys.executable, "-m", "tests.conformance.brokers.member", kind.name, where, group, topic]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        poll_until(lambda: len(consumer.assignment()) == 2, consumer)
        while other.stdout.readline().strip() != "2":
            assert other.poll() is None
            consumer.poll(1, 0.1)
    finally:
        other.kill()
        other.communicate()
    producer.publish(numbered(topic, 40, keys=40))
    poll_until(lambda: len(consumer.assignment()) == 4, consumer)


def test_a_new_assignment_asks_for_its_start_anew(producer, join, topic) -> None:
    producer.publish(numbered(topic, 40, keys=40))
    asked: list[TopicPartition] = []

    def start(partition: TopicPartition) -> None:
        asked.append(partition)

    first = join(start)
    collect(first, 40)
    second = join()
    poll_until(lambda: len(second.assignment()) == 2, first, second)
    before = len(asked)
    second.close()
    poll_until(lambda: len(first.assignment()) == 4, first)
    assert len(asked) >= before + 2


@pytest.mark.parametrize("key", ["ünï-çødé", "日本語-1", "🙂-🙃", "a b", ""])
def test_keys_are_any_text(producer, join, topic, key) -> None:
    producer.publish([Message(topic, key, b"1"), Message(topic, key, b"2")])
    assert by_key(collect(join(), 2)) == {key: [b"1", b"2"]}


def test_a_key_that_is_no_text_is_refused(producer, topic) -> None:
    with pytest.raises(MessageRefused) as refusal:
        producer.publish([Message(topic, "a", b""), Message(topic, "\ud800", b"")])
    assert refusal.value.index == 1


def test_an_empty_value_is_not_a_missing_one(producer, join, topic) -> None:
    producer.publish([Message(topic, "a", b""), Message(topic, "a", None), Message(topic, "a", b"\x00")])
    assert [d.value for d in collect(join(), 3)] == [b"", None, b"\x00"]


def test_headers_carry_any_bytes(producer, join, topic) -> None:
    headers = [("id", bytes(range(256))), ("empty", b""), ("näme", b"wert")]
    producer.publish([Message(topic, "a", b"1", headers), Message(topic, "a", b"2")])
    assert [dict(d.headers) for d in collect(join(), 2)] == [dict(headers), {}]


def test_a_message_of_900_kb_goes_through(producer, join, topic) -> None:
    value = bytes(range(256)) * 3_516
    producer.publish([Message(topic, "a", value), Message(topic, "b", b"small")])
    assert {d.value for d in collect(join(), 2)} == {value, b"small"}


def test_a_message_too_large_is_refused_by_its_index_and_what_came_before_is_published(
    kind, producer, join, topic
) -> None:
    messages = numbered(topic, 10)
    large = Message(topic, "stream-0", b"x" * kind.too_large_bytes)
    with pytest.raises(MessageRefused) as refusal:
        producer.publish([*messages[:6], large, *messages[6:]])
    assert refusal.value.index == 6
    assert len(str(refusal.value).splitlines()) == 1
    consumer = join()
    assert {d.value for d in collect(consumer, 6)} == {m.value for m in messages[:6]}
    assert list(consumer.poll(10, 0.5)) == []
    producer.publish(messages[6:])
    assert len(collect(consumer, 4)) == 4


def test_a_topic_that_cannot_be_is_refused_by_the_first_message_for_it(producer, join, topic) -> None:
    good = numbered(topic, 3)
    with pytest.raises(MessageRefused) as refusal:
        producer.publish([*good, Message("no such/topic!", "a", b""), Message(topic, "a", b"")])
    assert refusal.value.index == 3
    assert len(collect(join(), 3)) == 3


def test_a_consumer_of_a_topic_that_cannot_be_says_so(broker, group) -> None:
    with pytest.raises(BrokerError, match="topic"):
        broker.consumer(group, ["no such/topic!"], earliest)


def test_a_consumer_makes_its_topic_and_misses_nothing(broker, producer, join, topic) -> None:
    consumer = join()
    assert set(broker.ends([topic])) == {TopicPartition(topic, p) for p in range(4)}
    poll_until(lambda: len(consumer.assignment()) == 4, consumer)
    producer.publish(numbered(topic, 10))
    assert len(collect(consumer, 10)) == 10


def test_ends_are_the_offsets_of_the_next_messages(broker, producer, topic) -> None:
    assert broker.ends([topic]) == {}
    assert broker.ends([]) == {}
    placed = producer.publish(numbered(topic, 100, keys=30))
    expected = dict.fromkeys((TopicPartition(topic, p) for p in range(4)), 0)
    expected |= {tp: last + 1 for tp, last in placed.items()}
    assert broker.ends([topic, f"{topic}.none"]) == expected


def test_a_poll_that_finds_nothing_ends_in_time(join) -> None:
    consumer = join()
    poll_until(lambda: len(consumer.assignment()) == 4, consumer)
    began_s = time.monotonic()
    assert list(consumer.poll(10, 0.5)) == []
    assert 0.4 < time.monotonic() - began_s < 5.0


def test_a_waiting_poll_returns_with_the_first_message(producer, join, topic) -> None:
    producer.publish(numbered(topic, 1))
    consumer = join()
    collect(consumer, 1)
    timer = threading.Timer(0.3, producer.publish, [numbered(topic, 1)])
    timer.start()
    began_s = time.monotonic()
    found = consumer.poll(1_000, 30.0)
    assert len(found) == 1
    assert time.monotonic() - began_s < 10.0
    timer.join()


def test_a_poll_takes_no_more_than_it_is_asked_for(producer, join, topic) -> None:
    producer.publish(numbered(topic, 100, keys=50))
    consumer = join()
    sizes, found = [], 0
    while found < 100:
        sizes.append(len(consumer.poll(7, 5.0)))
        found += sizes[-1]
    assert max(sizes) <= 7


def test_two_producers_at_once_keep_each_key_in_order(broker, producer, join, topic) -> None:
    def publish(prefix: str) -> None:
        own = broker.producer()
        for at in range(0, 1_000, 100):
            own.publish([Message(topic, f"{prefix}-{i % 5}", f"{i}".encode()) for i in range(at, at + 100)])
        own.close()

    producer.publish(numbered(topic, 1))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(publish, "abc"))
    found = collect(join(), 3_001)
    assert len({(d.partition, d.offset) for d in found}) == 3_001
    for key, values in by_key(d for d in found if d.key != "stream-0").items():
        assert [int(v) for v in values] == list(range(int(key[2:]), 1_000, 5))


def test_commits_are_taken_for_what_is_held_and_for_what_is_not(producer, join, topic) -> None:
    producer.publish(numbered(topic, 20))
    consumer = join()
    collect(consumer, 20)
    consumer.commit(dict.fromkeys(consumer.assignment(), 1))
    consumer.commit({TopicPartition(topic, 99): 5})
    consumer.commit({})
    producer.publish(numbered(topic, 1))
    assert len(collect(consumer, 1)) == 1


def test_a_closed_producer_connects_again(producer, topic) -> None:
    producer.publish(numbered(topic, 1))
    producer.close()
    assert list(producer.publish(numbered(topic, 1)).values()) == [1]


@pytest.fixture
def nowhere(kind: Kind) -> Iterator[str]:
    """An address where nothing listens."""
    held = reserve(1)
    port = held.ports[0]
    yield f"127.0.0.1:{port}" if kind.server == "kafka" else f"postgresql://postgres@127.0.0.1:{port}/postgres"
    held.close()


def test_a_dead_broker_is_known_in_bounded_time_and_by_its_address(kind, nowhere, group, topic) -> None:
    began_s = time.monotonic()
    broker = kind.open(nowhere, 2.0)
    producer = broker.producer()
    assert time.monotonic() - began_s < 2.0
    uses = (
        lambda: producer.publish(numbered(topic, 3)),
        lambda: broker.ends([topic]),
        lambda: broker.consumer(group, [topic], earliest).poll(1, 1.0),
    )
    for use in uses:
        with pytest.raises(BrokerUnavailable) as failure:
            use()
        assert len(str(failure.value).splitlines()) == 1
        assert nowhere.rpartition(":")[2].split("/")[0] in str(failure.value)
    producer.close()
    broker.close()
    assert time.monotonic() - began_s < 20.0
