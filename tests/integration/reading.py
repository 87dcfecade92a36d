"""A read side for tests: real PostgreSQL, a real broker, a real store, and a projection that fails as it is told."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import Any

import pytest

from outbox.codec import Registry
from outbox.database import Connection, connected
from outbox.event import Event, NewEvent
from outbox.log.append import append
from outbox.log.read import read_by_stream
from outbox.log.statement import Token
from outbox.settings import Projecting, Settings, load
from projectors import ledger
from projectors.building import BUILD_LOCK
from projectors.ledger import DeadLetter
from projectors.record import Document, Record, Row, digest
from projectors.verify import Report, Verifier
from projectors.wait import wait_for
from projectors.wiring import ReadSide, Running, open_read_side

BROKERS = ["local", "kafka-confluent", "kafka-python"]
every_broker = pytest.mark.parametrize("broker", BROKERS)

PATIENCE_S = 30.0

_BUILDING = """
SELECT EXISTS (
    SELECT FROM pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database()
    AND locktype = 'advisory' AND granted AND classid = %s AND objid::bigint = hashtext(%s)::bigint & 4294967295)
"""


class Parts:
    """State: part -> value, put by ``entity.patched`` (null removes). One row a part.

    Until ``mended``, a part named ``!`` cannot be folded, one named ``odd`` makes a record that PostgreSQL's sink
    refuses, and one named ``raw`` makes a row with the wrong value.
    """

    categories = ("thing",)

    def __init__(self) -> None:
        self.mended = False

    def fold(self, state: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "entity.deleted":
            return None
        parts = event.data.get("properties", {})
        if "!" in parts and not self.mended:
            raise ValueError("cannot fold this")
        return {k: v for k, v in {**(state or {}), **parts}.items() if v is not None}

    def records(self, stream: str, state: dict[str, Any]) -> Iterator[Record]:
        for part, value in state.items():
            if part == "odd" and not self.mended:
                yield Document(f"{stream}#{part}", "odd", "", "no row")
            else:
                yield Row(f"{stream}#{part}", {"value": "cooked" if part == "raw" and self.mended else value})


def put(**parts: Any) -> NewEvent:
    return NewEvent("entity.patched", {"properties": parts})


def bad() -> NewEvent:
    return NewEvent("entity.patched", {"properties": {"!": 1}})


def deleted() -> NewEvent:
    return NewEvent("entity.deleted", {})


@dataclass
class Stage:
    """One database and one topic prefix, and what a test asks of them."""

    side: ReadSide
    projection: Parts
    connection: Connection
    names: tuple[str, ...] = ("rows",)
    registry: Registry = field(default_factory=Registry.load)

    @contextmanager
    def running(self, *, relay: bool = True) -> Iterator[Running]:
        """Relay and projectors as threads, past their first builds."""
        with Running(self.side, relay=relay) as running:
            for name in self.names:
                until(lambda name=name: self._is_built(name), f"{name} serves")
            yield running
            running.check()

    def _is_built(self, name: str) -> bool:
        """Whether a generation serves and its build is over: a build goes on for a moment after its switch."""
        building = self.connection.execute(_BUILDING, [BUILD_LOCK, name]).fetchone()
        return ledger.serving(self.connection, name) is not None and building == (False,)

    def append(self, stream: str, *events: NewEvent) -> Token:
        return append(self.connection, stream, list(events), registry=self.registry).token

    def wait(self, token: Token, *names: str, timeout_s: float = PATIENCE_S) -> None:
        topics = {name: self.side.plan(name).topics for name in names or self.names}
        wait_for(self.connection, token, topics, timeout_s)

    def wait_all(self, *names: str, timeout_s: float = PATIENCE_S) -> None:
        """Until everything committed by now is applied."""
        token = append(self.connection, "other-mark", put(a=1)).token
        self.wait(token, *names, timeout_s=timeout_s)

    def held(self, name: str = "rows", generation: str | None = None) -> dict[str, bytes]:
        """What the store holds: digests by key."""
        with self.side.open_sink(name) as sink:
            chosen = generation or self.serving(name)
            sink.prepare(chosen)
            return {stored.key: stored.digest for stored in sink.scan(chosen)}

    def model(self) -> dict[str, bytes]:
        """What it should hold, folded as plainly as can be; a stream ends before what cannot be folded."""
        held: dict[str, Record] = {}
        states: dict[str, Any] = {}
        for event in read_by_stream(self.connection, self.registry, categories=self.projection.categories):
            if states.get(event.stream) == "parked":
                continue
            try:
                state = states[event.stream] = self.projection.fold(states.get(event.stream), event)
            except ValueError:
                states[event.stream] = "parked"
                continue
            held = {k: r for k, r in held.items() if k.partition("#")[0] != event.stream}
            held |= {r.key: r for r in self.projection.records(event.stream, state or {})}
        return {key: digest(record) for key, record in held.items()}

    def serving(self, name: str = "rows") -> str:
        found = ledger.serving(self.connection, name)
        assert found is not None
        return found

    def letters(self, name: str = "rows") -> list[DeadLetter]:
        return ledger.dead_letters(self.connection, name, self.serving(name))

    def verify(self, name: str = "rows", generation: str | None = None) -> Report:
        return self.verifying(lambda verifier: verifier.verify(), name, generation)

    def verifying(self, act: Callable[[Verifier], Any], name: str = "rows", generation: str | None = None) -> Any:
        chosen = generation or self.serving(name)
        with connected(self.side.write.dsn) as connection, self.side.open_sink(name) as sink:
            sink.prepare(chosen)
            return act(Verifier(connection, self.side.plan(name), sink, chosen, self.side.write.registry))


def settings_of(broker: str, dsn: str, address: Callable[[str], str], **more: Any) -> Settings:
    """Settings of a stage: a topic prefix of its own."""
    given: dict[str, Any] = {
        "prefix": f"t{uuid.uuid4().hex[:10]}",
        "database": {"dsn": dsn},
        "projectors": {"rows": Projecting(projection="parts", store="postgres", batch=100)},
        **more,
    }
    if broker == "local":
        return load(mode="embedded", **given)
    client = "kafka-python" if broker == "kafka-python" else "confluent"
    kafka = {"bootstrap": address("kafka"), "client": client, "partitions": 3, "compression": "none", "timeout_s": 4}
    return load(mode="servers", kafka=kafka, **given)


@contextmanager
def staged(settings: Settings, projection: Any = None) -> Iterator[Stage]:
    projection = projection or Parts()
    with open_read_side(settings, {"parts": projection}) as side, connected(side.write.dsn) as connection:
        yield Stage(side, projection, connection, tuple(settings.projectors))


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait for a condition; returns what it gave."""
    deadline, pause = time.monotonic() + timeout_s, Flag()
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}"
        pause.wait(0.01)
    return result


def difference(held: Mapping[str, bytes], model: Mapping[str, bytes]) -> dict[str, list[str]]:
    """The keys that make them unequal, for a message that can be read."""
    return {
        "missing": sorted(model.keys() - held.keys())[:5],
        "extra": sorted(held.keys() - model.keys())[:5],
        "other": sorted(k for k in held.keys() & model.keys() if held[k] != model[k])[:5],
    }


def assert_equal_to_model(stage: Stage, name: str = "rows") -> None:
    held, model = stage.held(name), stage.model()
    assert difference(held, model) == {"missing": [], "extra": [], "other": []}
    assert model, "a model without records proves nothing"
