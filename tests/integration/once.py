"""A load, relays of real processes, and what a reader of committed messages sees, read without the product."""

from __future__ import annotations

import os
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import psycopg

from outbox.log.append import append
from tests.alongside import alongside
from tests.faults.launch import command
from tests.faults.processes import Child, begin
from tests.integration.appending import event
from tests.relaying import until

STREAMS = 40


class Load:
    """Appends to many streams as fast as it is let to, until the block ends; ``sent`` is how many to each."""

    def __init__(self, dsn: str, seed: int, pause_s: float = 0.01) -> None:
        self.sent: dict[str, int] = defaultdict(int)
        self._dsn, self._seed, self._pause_s = dsn, seed, pause_s

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        with alongside(self._run):
            yield

    def _run(self, ended: threading.Event) -> None:
        source = random.Random(self._seed)
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not ended.wait(self._pause_s):
                stream = f"order-{source.randrange(STREAMS)}"
                count = source.choice((1, 1, 5, 50))
                append(connection, stream, [event() for _ in range(count)])
                self.sent[stream] += count


class Relays:
    """Processes of ``outbox relay``: one leads, the others stand by."""

    def __init__(self, dsn: str, settings: Mapping[str, str], folder: Path) -> None:
        self._dsn, self._settings = dsn, dict(settings)
        self._log = str(folder / "relays.log")
        self._started = 0
        self.running: dict[int, Child] = {}

    def start(self) -> Child:
        self._started += 1
        child = begin(f"relay {self._started}", command, ["-v", "relay"], self._settings, self._log)
        self.running[child.pid] = child
        return child

    def leader(self) -> Child | None:
        """The process that holds the lease, if one of these does."""
        with psycopg.connect(self._dsn) as connection:
            row = connection.execute("SELECT holder FROM outbox.lease WHERE expires_at > clock_timestamp()").fetchone()
        return self.running.get(int(row[0].split(":")[1])) if row else None

    def said(self, line: str) -> int:
        """How often the processes have said this so far."""
        return Path(self._log).read_text("utf-8").count(line)

    def kill(self, child: Child) -> None:
        child.kill()
        del self.running[child.pid]

    def close(self) -> None:
        for child in list(self.running.values()):
            self.kill(child)


@contextmanager
def relays(dsn: str, settings: Mapping[str, str], folder: Path) -> Iterator[Relays]:
    with closing(Relays(dsn, settings, folder)) as found:
        yield found


def settings(dsn: str, bootstrap: str, prefix: str, **more: str) -> dict[str, str]:
    return {
        "OUTBOX_MODE": "servers",
        "OUTBOX_DATABASE__DSN": dsn,
        "OUTBOX_KAFKA__BOOTSTRAP": bootstrap,
        "OUTBOX_KAFKA__PARTITIONS": "4",
        "OUTBOX_PREFIX": prefix,
        "OUTBOX_RELAY__DELIVERY": "exactly_once",
        "OUTBOX_RELAY__LEASE_S": "0.6",
        "OUTBOX_RELAY__PAGE_MAX": "400",
    } | more


def published(dsn: str) -> int:
    """How many pages have been published, by the cursor."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT coalesce(max(step), 0) FROM outbox.relay_cursor").fetchone()
    assert row is not None
    return int(row[0])


def waiting(dsn: str) -> bool:
    """Whether rows of the outbox are not visible in the cursor."""
    query = """
    SELECT EXISTS (SELECT FROM outbox.outbox o JOIN outbox.relay_cursor c ON NOT pg_visible_in_snapshot(o.xid, c.a))
    """
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return bool(row[0])


def seen(bootstrap: str, topic: str, isolation: str = "read_committed") -> dict[str, list[int]]:
    """The versions of each stream in the order a reader from the beginning to the end sees them."""
    options: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "group.id": f"seen.{os.getpid()}",
        "isolation.level": isolation,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    consumer = confluent_kafka.Consumer(options)
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    found: dict[str, list[int]] = defaultdict(list)
    left = set(partitions)
    while left:
        for message in consumer.consume(1_000, 1.0):
            if message.error() is None:
                found[message.key().decode()].append(int(dict(message.headers())["version"]))
            elif message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            else:
                raise confluent_kafka.KafkaException(message.error())
    consumer.close()
    return found


def expected(load: Load) -> dict[str, list[int]]:
    return {stream: list(range(1, count + 1)) for stream, count in load.sent.items()}


def lead(found: Relays, other_than: Child | None = None) -> Child:
    """Wait until one leads."""

    def another() -> Child | None:
        leader = found.leader()
        return leader if leader is not other_than else None

    return until(another, 60)
