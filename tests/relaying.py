"""What tests of the relay share: a recording producer and a leader one can step by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import psycopg

from outbox.broker.protocol import Delivery, Message, TopicPartition
from outbox.database import connected
from outbox.errors import BrokerUnavailable, MessageRefused
from outbox.relay.ahead import ReadAhead
from outbox.relay.engines import open_engine
from outbox.relay.leader import Leader
from outbox.relay.lease import Lease, take
from outbox.relay.poll import PLANNING
from outbox.relay.relay import Relay
from outbox.relay.settings import RelaySettings
from tests.alongside import alongside

Fault = Callable[[Sequence[Message]], None]

STREAMING = """
SELECT 1 FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid
WHERE database = current_database() AND state = 'streaming'
"""
"""Gives a row if somebody streams from a slot of this database."""


class Recorder:
    """A producer that keeps what it is given, in order. It is the broker too; one topic is one partition.

    ``refuse``: keys never taken. ``fault``: called before each batch; may raise. Shared between terms.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuse: set[str] = set()
        self.fault: Fault = lambda messages: None
        self.lock = threading.Lock()

    def publish(self, messages: Sequence[Message]) -> dict[TopicPartition, int]:
        self.fault(messages)
        sent = {}
        for index, message in enumerate(messages):
            if message.key in self.refuse:
                raise MessageRefused(f"{message.key} is too large", index)
            with self.lock:
                self.messages.append(message)
                sent[TopicPartition(message.topic, 0)] = len(self.messages) - 1
        return sent

    def producer(self) -> Recorder:
        return self

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self.lock:
            last = {m.topic: n for n, m in enumerate(self.messages)}
        return {TopicPartition(topic, 0): last[topic] + 1 for topic in topics if topic in last}

    def consumer(self, group: str, topics: Sequence[str], start: Callable[[TopicPartition], int | None]) -> Replay:
        return Replay(self, {TopicPartition(t, 0): start(TopicPartition(t, 0)) or 0 for t in topics})

    def close(self) -> None:
        pass

    def keys(self) -> list[str]:
        return [m.key for m in self.messages]

    def versions(self, stream: str) -> list[int]:
        return [int(dict(m.headers)["version"]) for m in self.messages if m.key == stream]


class Replay:
    """Reads what a recorder holds."""

    def __init__(self, recorder: Recorder, places: dict[TopicPartition, int]) -> None:
        self._recorder = recorder
        self._places = places

    def poll(self, max_messages: int, timeout_s: float) -> list[Delivery]:
        with self._recorder.lock:
            found = [
                Delivery(m.topic, 0, n, m.key, m.value, dict(m.headers))
                for n, m in enumerate(self._recorder.messages)
                if n >= self._places.get(TopicPartition(m.topic, 0), n + 1)
            ][:max_messages]
        for delivery in found:
            self._places[TopicPartition(delivery.topic, 0)] = delivery.offset + 1
        return found

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._places)

    def close(self) -> None:
        pass


def first_occurrences(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def down(messages: Sequence[Message]) -> None:
    raise BrokerUnavailable("nobody answers")


@contextmanager
def leading(
    dsn: str,
    recorder: Recorder,
    settings: RelaySettings | None = None,
    holder: str = "test",
    engine: Callable[..., Any] | None = None,
) -> Iterator[Leader]:
    """A leader on a lease just taken (which must be free or the holder's own), with the engine its settings name.

    ``engine``: one of the test's own instead, called with a connection and the prefix.
    """
    settings = settings or RelaySettings()
    with connected(dsn) as connection:
        lease = take(connection, settings.name, holder, settings.lease_s)
        assert isinstance(lease, Lease)
        opened = open_engine(dsn, lease, settings) if engine is None else _given(dsn, engine, settings)
        with opened as reader:
            yield Leader(connection, reader, recorder, lease, settings)


def relaying(dsn: str, broker: Any, settings: RelaySettings) -> AbstractContextManager[None]:
    """A relay in a thread until the block ends; it must not end by itself."""
    return alongside(Relay(dsn, lambda: broker, settings).run)


@contextmanager
def _given(dsn: str, engine: Callable[..., Any], settings: RelaySettings) -> Iterator[Any]:
    with connected(dsn, **PLANNING) as reading:
        with closing(ReadAhead(engine(reading, settings.prefix))) as reader:
            yield reader


@contextmanager
def without_slots(dsn: str) -> Iterator[str]:
    """The database; in the end its slots are dropped, without which it could not be."""
    try:
        yield dsn
    finally:
        with connected(dsn) as connection:
            drop_slots(connection)


def slots(connection: Any) -> list[str]:
    query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1"
    return [name for (name,) in connection.execute(query)]


def drop_slots(connection: Any) -> int:
    """End whoever streams from this database and drop its slots, as an operator in a hurry would; returns how many.

    A slot that is only being made is left alone: asked for often enough, none would ever be finished.
    """
    dropped = 0
    made = (
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn > '0/0'"
    )
    for (name,) in connection.execute(made).fetchall():
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s", [name]
        )
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
            dropped += 1
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):  # somebody was quicker
            pass
    return dropped


def lose_lease(connection: Any) -> None:
    """As if a halted leader's time were up; the thread that keeps it here would not run in a halted process either."""
    connection.execute("SET statement_timeout = '15s'")  # what the leader has locked is waited for
    connection.execute("UPDATE outbox.lease SET epoch = epoch + 1, expires_at = '-infinity'")


def drain(leader: Leader) -> int:
    total = 0
    while published := leader.step():
        total += published
    return total


def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Wait for a condition; the pause only spares the processor."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, "the condition did not come about in time"
        threading.Event().wait(0.005)
    return answer


def step_until(leader: Leader, condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Lead until a condition holds. A stream gives its rows when it has them, so no step is known to be the last."""

    def stepped() -> Any:
        leader.step()
        return condition()

    return until(stepped, within_s)
