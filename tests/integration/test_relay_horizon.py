"""What a relay asks its broker before it publishes: events that the log lacks, where it may not look, and cannot."""

from __future__ import annotations

import uuid

import pytest

from outbox.broker.kafka import open_kafka
from outbox.broker.protocol import Message, TopicPartition
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused
from outbox.errors import BrokerUnavailable, LogWentBack
from outbox.log.append import append
from outbox.relay import horizon as horizons
from outbox.relay.horizon import Horizon
from outbox.relay.leader import Leader
from outbox.relay.lease import take
from outbox.relay.relay import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, Replay, drain, leading, until

FOREIGN = "0192d3c4-0000-7000-8000-000000000000"


@pytest.fixture
def holding(database, producer):
    """A broker with one event beyond the map, which the log lacks."""
    recorder = Recorder()
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        drain(leader)
    (message,) = recorder.messages
    headers = {**dict(message.headers), "id": FOREIGN.encode()}
    recorder.messages.append(Message(message.topic, message.key, message.value, list(headers.items())))
    return recorder


def sharing(recorder, within):
    """The broker's consumers, of whose partitions another member of their group has some for so many polls."""

    class Shared(Replay):
        left = within

        def poll(self, max_messages, timeout_s):
            self.left -= 1
            return super().poll(max_messages, timeout_s) if self.left < 0 else []

        def assignment(self):
            return super().assignment() if self.left < 0 else frozenset()

    def consumer(group, topics, start):
        return Shared(recorder, {TopicPartition(t, 0): start(TopicPartition(t, 0)) or 0 for t in topics})

    return consumer


def test_what_another_member_of_the_group_has_is_waited_for(producer, holding):
    holding.consumer = sharing(holding, within=3)
    with pytest.raises(LogWentBack):
        Horizon(producer, holding, "outbox").check_log()


def test_nothing_is_published_over_what_could_not_be_read(producer, holding, monkeypatch):
    monkeypatch.setattr(horizons, "JOIN_S", 0.05)
    holding.consumer = sharing(holding, within=10**9)
    with pytest.raises(BrokerUnavailable, match=r"outbox\.order beyond the map"):
        Horizon(producer, holding, "outbox").check_log()


def test_a_topic_that_the_broker_refuses_to_tell_of_parks_its_keys_and_no_more(database, producer, monkeypatch):
    recorder, ends = Recorder(), Recorder.ends

    def asked(self, topics):
        if "outbox.order" in topics:
            raise TopicRefused("outbox.order", "not authorized")
        return ends(self, topics)

    monkeypatch.setattr(Recorder, "ends", asked)
    recorder.refuse = {"order-1"}
    append(producer, "order-1", event())
    append(producer, "cart-1", event())
    settings = RelaySettings()
    with leading(database, recorder) as first:
        lease = take(producer, settings.name, "test", settings.lease_s)
        leader = Leader(producer, first._engine, recorder, lease, settings, Horizon(producer, recorder, "outbox"))
        drain(leader)
    assert recorder.keys() == ["cart-1"]


def test_on_kafka_a_member_that_was_killed_while_it_asked_does_not_let_the_next_one_pass(
    database, producer, address, monkeypatch
):
    monkeypatch.setattr(horizons, "JOIN_S", 3.0)
    prefix = f"t{uuid.uuid4().hex[:10]}"
    settings = KafkaSettings(bootstrap=address("kafka"), compression="none", timeout_s=4.0, partitions=2)
    broker = open_kafka(settings)
    topic = f"{prefix}.order"
    sender = broker.producer()
    sender.publish([Message(topic, f"order-{n}", b"", [("id", FOREIGN.encode())]) for n in range(10)])
    sender.close()
    producer.execute(
        """INSERT INTO outbox.published (topic, partition, "offset", horizon) VALUES (%s, 0, 0, '3')""", [topic]
    )
    killed = broker.consumer(f"{prefix}.horizon", [topic], lambda place: 0)
    until(lambda: killed.poll(1, 0.2) and killed.assignment())
    with pytest.raises(BrokerUnavailable, match="beyond the map"):
        Horizon(producer, broker, prefix).check_log()
    killed.close()
    with pytest.raises(LogWentBack):
        Horizon(producer, broker, prefix).check_log()
    broker.close()
