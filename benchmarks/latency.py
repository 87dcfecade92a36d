"""How long after COMMIT does a consumer of Kafka have an event? ``python -m benchmarks.latency``

Events of 450 bytes are committed at a fixed rate, each by a transaction of its own up to 500 a second and ten in a
transaction at 5,000. The relay is a process; so is the consumer, a plain one of confluent-kafka, whose clock is the
writer's (``time.monotonic``). By both engines; and, for what of it is Kafka's own, the same messages given to a plain
producer, with neither PostgreSQL nor a relay.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final, Self, get_args

import psycopg

from benchmarks.databases import fresh_database
from benchmarks.measuring import say
from benchmarks.processes import processes
from benchmarks.results import Result, Target, at_most, at_quantiles
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.broker.settings import KafkaSettings
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.relay.settings import EngineName

CATEGORY: Final = "order"
ALONE: Final = "no relay"
BATCHES: Final = {200: 1, 500: 1, 5_000: 10}
"""Events in a transaction, by events a second."""
TARGETS: Final[dict[int, dict[str, Target]]] = {
    200: {"p50": at_most(1.4), "p99": at_most(3.0)},
    500: {"p50": at_most(3.0), "p99": at_most(8.0)},
}
"""Milliseconds. At 200 they are what the peer txoutbox 0.2.2 was measured at."""
SECONDS: Final = 2.0
TEXT: Final = "Forty words of an order that somebody has placed. " * 8
WITHIN_S: Final = 60.0
WARM: Final = 200

Write = Callable[[int, int, int], Mapping[str, float]]
"""Writes so many events, at a rate, so many at once; the moment of each, by id."""


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    engines: tuple[EngineName, ...] = get_args(EngineName)
    for engine in [name for name in engines if given.only in name]:
        with fresh_database(servers.address("postgres")) as dsn:
            prefix = f"latency{uuid.uuid4().hex[:8]}"
            settings = {
                "OUTBOX_MODE": "servers",
                "OUTBOX_PREFIX": prefix,
                "OUTBOX_DATABASE__DSN": dsn,
                "OUTBOX_KAFKA__BOOTSTRAP": servers.address("kafka"),
                "OUTBOX_RELAY__ENGINE": engine,
            }
            with processes(settings, [["relay"]]), psycopg.connect(dsn) as connection:
                write = partial(_committed, connection)
                yield from rounds(write, servers.address("kafka"), f"{prefix}.{CATEGORY}", engine, given)
    if given.only in ALONE:
        bootstrap, topic = servers.address("kafka"), f"latency{uuid.uuid4().hex[:8]}.{CATEGORY}"
        yield from rounds(partial(_produced, _producer(bootstrap, topic), topic), bootstrap, topic, ALONE, given)


def rounds(write: Write, bootstrap: str, topic: str, engine: str, given: argparse.Namespace) -> Iterator[Result]:
    """Each rate so many times, by turns, after a round that only warms up: Kafka compiles itself while it works."""
    warm_up = 0 if given.quick else 1
    write(WARM, 200, 1)
    with _Consumer(bootstrap, topic) as consumer:
        consumer.take(WARM)
        found: dict[int, list[list[float]]] = {rate: [] for rate in BATCHES}
        for _ in range(warm_up + given.rounds):
            for rate, batch in BATCHES.items():
                committed = write(int(rate * given.seconds), rate, batch)
                seen = consumer.take(len(committed))
                found[rate].append([(seen[id_] - at) * 1e3 for id_, at in committed.items()])
    for rate, each in found.items():
        question = f"commit to a consumer of Kafka, {rate:,}/s, {engine}"
        yield from at_quantiles(question, "ms", each[warm_up:], {} if engine == ALONE else TARGETS.get(rate, {}))


def _committed(connection: psycopg.Connection[Any], count: int, rate: int, batch: int) -> dict[str, float]:
    """Commit ``count`` events at the rate; when each one's commit returned, by id."""
    committed: dict[str, float] = {}
    stream = uuid.uuid4().hex
    for number in _paced(count, rate, batch):
        events = [NewEvent("entity.upserted", _data(number), uuid.uuid4()) for _ in range(batch)]
        append(connection, f"{CATEGORY}-{stream}{number % 100}", events)
        connection.commit()
        committed |= dict.fromkeys((str(event.id) for event in events), time.monotonic())
    return committed


def _producer(bootstrap: str, topic: str) -> Any:
    """A plain producer, and the topic with as many partitions as ours has."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    new = NewTopic(topic, KafkaSettings(bootstrap).partitions)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([new])[topic].result(WITHIN_S)
    return Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0})


def _produced(producer: Any, topic: str, count: int, rate: int, batch: int) -> dict[str, float]:
    """Give the producer as many messages of the same size; when each one was given to it, by id."""
    given: dict[str, float] = {}
    for number in _paced(count, rate, batch):
        for key in range(number, number + batch):
            id_ = str(uuid.uuid4())
            given[id_] = time.monotonic()
            producer.produce(topic, TEXT, str(number % 100 + key - number), headers={"id": id_})
        producer.poll(0)
    producer.flush(WITHIN_S)
    return given


def _paced(count: int, rate: int, batch: int) -> Iterator[int]:
    """The number of each batch's first, when its time has come; says how fast that went."""
    started = time.monotonic()
    for number in range(0, count, batch):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        yield number
    say(f"{count / (time.monotonic() - started):,.0f} events/s, asked for {rate:,}")


def _data(number: int) -> dict[str, Any]:
    return {"kind": "order", "name": f"order {number}", "text": TEXT, "properties": {"line": number}}


class _Consumer:
    """A process that reads a topic from its beginning and says when it had each event."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_consume, args=(bootstrap, topic, there), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def take(self, count: int) -> dict[str, float]:
        """When each of the next so many events was there. Raises TimeoutError."""
        self._here.send(count)
        if not self._here.poll(WITHIN_S):
            raise TimeoutError(f"not all of {count} events came within {WITHIN_S:g} s")
        seen: dict[str, float] = self._here.recv()
        return seen


def _consume(bootstrap: str, topic: str, there: Connection) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    seen: dict[str, float] = {}
    wanted = there.recv()
    while True:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            seen[dict(message.headers())["id"].decode()] = time.monotonic()
        if wanted and len(seen) >= wanted:
            there.send(seen)
            seen, wanted = {}, 0
        if not wanted and there.poll():
            wanted = there.recv()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each rate in each round ({SECONDS:g})")
    given = parser.parse_args()
    if given.quick:
        given.seconds = 0.2
    run("latency", ["postgres", "kafka"], measure, given)


if __name__ == "__main__":
    main()
