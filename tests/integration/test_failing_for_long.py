"""What goes on failing for hours, in a process that looks for garbage rarely: each attempt lets go of what it held."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from outbox import garbage
from outbox.broker.protocol import Message, TopicPartition
from outbox.capture.capture import Capture, CaptureSettings
from outbox.codec import Registry
from outbox.database import connected
from outbox.errors import BrokerUnavailable, DatabaseError, MessageRefused, StoreUnavailable
from outbox.log.append import append
from outbox.relay.relay import Relay, RelaySettings
from projectors.record import Change
from projectors.resilience import Resilience
from projectors.runner import Runner
from tests.integration.appending import event
from tests.integration.reading import put, settings_of, staged
from tests.relaying import Recorder, leading

ATTEMPTS = 5


class Held:
    """What an attempt holds."""


class Attempts:
    """Counts them, and of which the object that each began with is still there when the next one begins."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._begun: list[weakref.ref[Any]] = []
        self.left: list[int] = []

    def begin(self, held: Any) -> None:
        self.left.append(sum(ref() is not None for ref in self._begun))
        self._begun.append(weakref.ref(held))
        if len(self._begun) == ATTEMPTS:
            self._stop.set()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def attempts(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    """Where Python never collects by itself, as in our own processes for as long as objects are few."""
    monkeypatch.setattr(garbage, "SHARE", 0)
    monkeypatch.setattr(garbage, "_rests_until", [0.0])
    gc.collect()
    gc.disable()
    try:
        yield Attempts(stop)
    finally:
        gc.enable()


def test_a_session_whose_store_is_down_leaves_nothing(
    database: str, address: Callable[[str], str], attempts: Attempts, stop: threading.Event
) -> None:
    class Down:
        conditional = True

        def prepare(self, generation: str) -> None:
            pass

        def apply(self, generation: str, changes: Sequence[Change]) -> None:
            raise StoreUnavailable("nobody answers")

    @contextmanager
    def sink() -> Iterator[Any]:
        down = Down()
        attempts.begin(down)
        yield down

    with staged(settings_of("local", database, address)) as stage:
        with stage.running():
            stage.wait_all()
        stage.append("thing-0", put(a=0))
        stage.side.write.relay().run(threading.Event(), drain=True)
        stations = replace(
            stage.side.stations("rows"), sink=sink, rest_s=0.001, resilience=Resilience(attempts=2, backoff_s=0.001)
        )
        Runner(stage.side.plan("rows"), stations, lambda _: stage.serving()).run(stop)
    assert attempts.left == [0] * ATTEMPTS


def test_a_relay_whose_broker_is_down_leaves_nothing(database: str, attempts: Attempts, stop: threading.Event) -> None:
    def down(messages: Sequence[Message]) -> None:
        error = BrokerUnavailable("nobody answers")  # in a frame that it comes through, as a client's future has it
        raise error

    def broker() -> Recorder:
        opened = Recorder()
        opened.fault = down
        attempts.begin(opened)
        return opened

    with connected(database) as connection:
        append(connection, "order-1", event())
    Relay(database, broker, RelaySettings(retry_s=0.001)).run(stop)
    assert attempts.left == [0] * ATTEMPTS


def test_a_row_that_is_refused_leaves_nothing(database: str, attempts: Attempts) -> None:
    class Refusing(Recorder):
        def publish(self, messages: Sequence[Message]) -> dict[TopicPartition, int]:
            held = Held()
            attempts.begin(held)
            error = MessageRefused("too large", 0)
            raise error

    with connected(database) as connection:
        for number in range(ATTEMPTS):
            append(connection, f"order-{number}", event())
    with leading(database, Refusing()) as leader:
        assert leader.step() == ATTEMPTS
    assert attempts.left == [0] * ATTEMPTS


def test_a_capture_whose_database_is_down_leaves_nothing(
    attempts: Attempts, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(*_: object, **__: object) -> bool:
        held = Held()
        attempts.begin(held)
        error = DatabaseError("nobody answers")
        raise error

    monkeypatch.setattr(Capture, "_attempt", attempt)
    Capture("", Registry.load(), CaptureSettings(retry_s=0.001)).run(stop)
    assert attempts.left == [0] * ATTEMPTS
