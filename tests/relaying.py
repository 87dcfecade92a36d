"""What tests of the relay share: a recording producer and a leader one can step by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from outbox.broker.protocol import Message, TopicPartition
from outbox.database import connected
from outbox.errors import BrokerUnavailable, MessageRefused
from outbox.relay.leader import Leader
from outbox.relay.lease import Lease, take
from outbox.relay.poll import PLANNING, PollEngine
from outbox.relay.settings import RelaySettings

Fault = Callable[[Sequence[Message]], None]


class Recorder:
    """A producer that keeps what it is given, in order. It is the broker too; one topic is one partition.

    ``refuse``: keys never taken. ``fault``: called before each batch; may raise. Shared between terms.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuse: set[str] = set()
        self.fault: Fault = lambda messages: None
        self.lock = threading.Lock()

    def publish(self, messages: Sequence[Message]) -> list[tuple[TopicPartition, int]]:
        self.fault(messages)
        sent = []
        for index, message in enumerate(messages):
            if message.key in self.refuse:
                raise MessageRefused(f"{message.key} is too large", index)
            with self.lock:
                self.messages.append(message)
                sent.append((TopicPartition(message.topic, 0), len(self.messages) - 1))
        return sent

    def producer(self) -> Recorder:
        return self

    def close(self) -> None:
        pass

    def keys(self) -> list[str]:
        return [m.key for m in self.messages]

    def versions(self, stream: str) -> list[int]:
        return [int(dict(m.headers)["version"]) for m in self.messages if m.key == stream]


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
    engine: Callable[..., Any] = PollEngine,
) -> Iterator[Leader]:
    """A leader on a lease just taken (which must be free or the holder's own)."""
    settings = settings or RelaySettings()
    with connected(dsn) as connection, connected(dsn, **PLANNING) as reading:
        lease = take(connection, settings.name, holder, settings.lease_s)
        assert isinstance(lease, Lease)
        reader = engine(reading, settings.prefix)
        try:
            yield Leader(connection, reader, recorder, lease, settings)
        finally:
            reader.close()


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
