"""Topics that lose what they held: the log fills what the broker has not."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.until import until
from tests.faults.wiring import KAFKA_PARTITIONS

KAFKA = {"broker": "kafka", "topic_whole": False, "bound_s": 60, "cheap": False}
WITHIN_S = 20.0


def _admin(run: Run) -> AdminClient:
    return AdminClient({"bootstrap.servers": run.servers.address("kafka")})


def _await(asked: Mapping[Any, Future[Any]]) -> None:
    """Wait for every answer. The client that was asked must outlive this."""
    for answer in asked.values():
        answer.result(WITHIN_S)


def _truncate(run: Run) -> None:
    """Everything that is there by now expires."""
    topic = run.place_of_broker().name
    places = [TopicPartition(topic, number, OFFSET_END) for number in range(KAFKA_PARTITIONS)]
    admin = _admin(run)
    _await(admin.delete_records(places, request_timeout=WITHIN_S))


def _delete(run: Run) -> None:
    topic = run.place_of_broker().name
    admin = _admin(run)
    _await(admin.delete_topics([topic], request_timeout=WITHIN_S))


def _make(run: Run) -> None:
    """By the operator, or by the relay if that is quicker."""
    topic = run.place_of_broker().name

    admin = _admin(run)

    def made() -> bool:
        with suppress(KafkaException):  # it is there, or it is still being deleted
            _await(admin.create_topics([NewTopic(topic, KAFKA_PARTITIONS, 1)]))
        return topic in admin.list_topics(timeout=WITHIN_S).topics

    until(made, "the topic is made again")


@fault("topic: truncated, Kafka", **KAFKA)
def _truncated(run: Run) -> None:
    """Under way: what the projector has not read yet is gone before it could."""
    run.begin()
    for _ in range(run.source.randrange(1, 4)):
        run.appended(run.source.randrange(10, 80))
        _truncate(run)
    if run.quietly:
        run.stop_writers()
    run.over()


@fault("topic: truncated while its projector is away, Kafka", **KAFKA)
def _out_of_range(run: Run) -> None:
    """Its checkpoints are out of range when it comes back."""
    run.begin()
    run.appended(20)
    run.children["project"].stop()
    run.appended(run.source.randrange(20, 120))
    if run.quietly:
        run.stop_writers()
        run.published()
    _truncate(run)
    run.again("project")
    run.over()
    if not run.quietly:
        run.appended(20)


@fault("topic: deleted, Kafka", **KAFKA)
def _deleted(run: Run) -> None:
    """Whoever needs it makes it again."""
    run.begin()
    run.appended(run.source.randrange(20, 120))
    if run.quietly:
        run.stop_writers()
    _delete(run)
    run.over()
    if not run.quietly:
        run.appended(20)


@fault("topic: deleted and made again, Kafka", **KAFKA)
def _made_again(run: Run) -> None:
    """Under the projector, or while it is away; then the new one may have outgrown its checkpoints."""
    run.begin()
    run.appended(run.source.randrange(10, 60))
    away = run.source.random() < 0.5
    if away:
        run.children["project"].stop()
    _delete(run)
    _make(run)
    run.appended(run.source.randrange(50, 400))
    if run.quietly:
        run.stop_writers()
        run.published()
    if away:
        run.again("project")
    run.over()


@fault("topic: truncated, local broker", topic_whole=False)
def _truncated_local(run: Run) -> None:
    run.begin()
    for _ in range(run.source.randrange(1, 4)):
        run.appended(run.source.randrange(10, 80))
        with run.connection() as connection:
            connection.execute("TRUNCATE outbox.broker_message")
    if run.quietly:
        run.stop_writers()
    run.over()
