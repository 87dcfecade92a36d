"""The brokers that must keep the protocol, and how each is opened. To add one, add a :class:`Kind`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from psycopg.conninfo import make_conninfo

from outbox.broker import Broker, Consumer, Delivery, KafkaSettings, LocalBroker, LocalSettings, Message, open_kafka
from outbox.database import connect
from outbox.log.migrate import migrate

WAIT_S = 60.0
"""A condition that has not come true by then never will; passing tests wait for a fraction of it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A broker under test."""

    name: str
    server: str
    """The server it needs, by its name in ``deploy.local``."""
    open: Callable[[str, float], Broker]
    """``open(address, timeout_s)``; a dead member's partitions are free after six seconds."""
    too_large_bytes: int
    """A value that is never taken."""


def open_kafka_client(client: str, address: str, timeout_s: float, **more: Any) -> Broker:
    usual = {"client": client, "compression": "gzip", "partitions": 4, "session_timeout_s": 6.0}
    return open_kafka(KafkaSettings(address, timeout_s=timeout_s, **usual | more))


def open_local(address: str, timeout_s: float) -> Broker:
    return LocalBroker(address, LocalSettings(max_message_bytes=2_000_000, timeout_s=timeout_s, lease_s=6.0))


KINDS = (
    Kind("kafka-python", "kafka", partial(open_kafka_client, "kafka-python"), 2_000_000),
    Kind("confluent", "kafka", partial(open_kafka_client, "confluent"), 2_000_000),
    Kind("local", "postgres", open_local, 2_000_001),
)


@contextmanager
def installed(kind: Kind, server: str) -> Iterator[str]:
    """Where the broker is, on a server that others use too."""
    if kind.server != "postgres":
        yield server
        return
    with own_database(server) as address:
        yield address


@contextmanager
def own_database(server: str) -> Iterator[str]:
    """A new database with the tables, dropped at the end."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with connect(server) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    address = make_conninfo(server, dbname=name)
    with connect(address) as connection:
        migrate(connection)
    yield address
    with connect(server) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def collect(consumer: Consumer, count: int, *, at_once: int = 1_000) -> list[Delivery]:
    """The next ``count`` deliveries; fails if they do not come."""
    found: list[Delivery] = []
    until_s = time.monotonic() + WAIT_S
    while len(found) < count:
        assert time.monotonic() < until_s, f"{len(found)} of {count} messages came within {WAIT_S:g} s"
        found += consumer.poll(min(at_once, count - len(found)), 1.0)
    return found


def poll_until(condition: Callable[[], bool], *consumers: Consumer) -> list[Delivery]:
    """Poll the consumers in turn until the condition holds; what they gave. Fails if it never holds."""
    found: list[Delivery] = []
    until_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until_s, f"the condition did not come true within {WAIT_S:g} s"
        for consumer in consumers:
            found += consumer.poll(1_000, 0.1)
    return found


def numbered(topic: str, count: int, keys: int = 7) -> list[Message]:
    return [Message(topic, f"stream-{i % keys}", f"{i}".encode()) for i in range(count)]


def by_key(deliveries: Iterable[Delivery]) -> dict[str, list[bytes | None]]:
    found: dict[str, list[bytes | None]] = {}
    for delivery in deliveries:
        found.setdefault(delivery.key, []).append(delivery.value)
    return found


def first_times(values: Sequence[bytes | None]) -> list[bytes | None]:
    """Without repeats, in the order of first occurrence."""
    return list(dict.fromkeys(values))


def earliest(_partition: object) -> None:
    """Start at the earliest offset."""
