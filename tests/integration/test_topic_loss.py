"""Topics that are deleted, emptied or made again before all is read: the log fills what the broker lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag

import pytest
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaTopicPartition

from outbox.broker.protocol import Range, TopicPartition
from outbox.envelope import topic_of
from projectors import horizon, ledger
from tests.integration.reading import (
    Stage,
    assert_equal_to_model,
    every_broker,
    put,
    until,
)

pytestmark = every_broker


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "LOOK_EVERY_S", 0.5)


def topic(stage: Stage) -> str:
    return topic_of(stage.side.settings.prefix, "thing")


def held(stage: Stage) -> dict[TopicPartition, Range]:
    broker = stage.side.write.broker()
    try:
        return dict(broker.ranges([topic(stage)]))
    finally:
        broker.close()


@contextmanager
def admin(stage: Stage) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=stage.side.settings.kafka.bootstrap)
    yield client
    client.close()


def empty(stage: Stage) -> None:
    """Everything in the topic expires."""
    before = held(stage)
    if stage.side.settings.mode == "embedded":
        stage.connection.execute("TRUNCATE outbox.broker_message")
    else:
        with admin(stage) as client:
            client.delete_records({KafkaTopicPartition(*tp): r.end for tp, r in before.items()})
    until(lambda: all(held(stage)[tp].earliest >= r.end for tp, r in before.items()), "what it held is gone")


def delete(stage: Stage) -> None:
    """The topic is deleted. Whoever needs it makes it again."""
    if stage.side.settings.mode == "embedded":
        with stage.connection.transaction():
            id_ = "(SELECT topic_id FROM outbox.broker_topic WHERE topic = %s)"
            for table in ("broker_message", "broker_lease", "broker_partition", "broker_topic"):
                stage.connection.execute(f"DELETE FROM outbox.{table} WHERE topic_id = {id_}".encode(), [topic(stage)])
    else:
        with admin(stage) as client:
            client.delete_topics([topic(stage)])
        until(lambda: not held(stage), "it is gone")


def some(stage: Stage, part: str, streams: int = 30) -> None:
    for n in range(streams):
        stage.append(f"thing-{n}", put(**{part: n}))


def published(stage: Stage) -> None:
    """Relay what waits, without a projector."""
    stage.side.write.relay().run(Flag(), drain=True)


def test_ranges_tell_what_each_partition_holds(stage: Stage) -> None:
    broker = stage.side.write.broker()
    assert broker.ranges([topic(stage)]) == {}
    assert broker.ranges([]) == {}
    some(stage, "a")
    published(stage)
    found = held(stage)
    assert sum(r.end - r.earliest for r in found.values()) == 30
    assert {tp: r.end for tp, r in found.items()} == dict(broker.ends([topic(stage)]))
    assert len({r.incarnation for r in found.values()}) == 1
    empty(stage)
    assert {tp: r.end for tp, r in held(stage).items()} == {tp: r.end for tp, r in found.items()}
    broker.close()


def test_what_expired_while_the_projector_was_away_comes_from_the_log(stage: Stage) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
    some(stage, "b")
    stage.append("thing-1", put(a=None))
    published(stage)
    empty(stage)
    with stage.running():
        stage.wait_all()
        assert_equal_to_model(stage)
        some(stage, "c")
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_topic_deleted_with_unread_messages_is_made_again_and_filled(stage: Stage) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
    some(stage, "b")
    stage.append("thing-2", put(a=None))
    published(stage)
    delete(stage)
    with stage.running():
        until(lambda: "thing-29#b" in stage.held(), "it is filled")
        assert_equal_to_model(stage)
        some(stage, "c")
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_topic_made_again_that_has_outgrown_the_checkpoint_hides_nothing(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
    some(stage, "b")
    published(stage)
    delete(stage)
    for part in "cde":
        some(stage, part, streams=40)
    published(stage)
    assert all(r.end > 1 for r in held(stage).values())
    with stage.running():
        stage.wait_all()
        assert_equal_to_model(stage)


def test_a_topic_deleted_under_a_running_projector_is_noticed_and_filled(stage: Stage) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
        delete(stage)
        some(stage, "b")
        stage.wait_all(timeout_s=60.0)
        until(lambda: "thing-29#b" in stage.held(), "it is filled")
        some(stage, "c")
        stage.wait_all(timeout_s=60.0)
        assert_equal_to_model(stage)


def test_a_topic_emptied_under_a_running_projector_is_noticed_and_filled(stage: Stage) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
        for part in "bcd":
            some(stage, part)
            empty(stage)
        stage.wait_all(timeout_s=60.0)
        assert_equal_to_model(stage)


def test_no_topic_is_filled_without_need(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
    fills: list[object] = []
    monkeypatch.setattr(horizon.Horizon, "_fill", lambda *arguments: fills.append(arguments))
    for part in "bc":
        with stage.running():
            some(stage, part)
            stage.wait_all()
    assert fills == []
    assert_equal_to_model(stage)


def test_a_member_that_has_not_noticed_writes_no_checkpoint_of_a_topic_made_again(stage: Stage) -> None:
    with stage.running():
        some(stage, "a")
        stage.wait_all()
    generation, tp = stage.serving(), TopicPartition(topic(stage), 0)
    now = ledger.checkpoints(stage.connection, "rows", generation)[tp]
    ledger.save_checkpoints(stage.connection, "rows", generation, {tp: now + 5}, {tp.topic: "another"})
    assert ledger.checkpoints(stage.connection, "rows", generation)[tp] == now
