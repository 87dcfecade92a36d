"""A seeded workload of entities, and what its events must have become wherever they went."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from outbox.broker.protocol import Broker
from outbox.database import connected
from outbox.envelope import read_event
from outbox.errors import DatabaseError
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.read import read_by_stream, read_stream
from projectors.pipeline import embedded_records
from projectors.record import digest
from projectors.wiring import ReadSide
from tests.alongside import alongside

STREAMS = 40
PAUSE_S = 0.004
WORDS = ["graph", "vector", "ledger", "relay", "cursor", "broker", "fold", "horizon", "stream", "snapshot"]


def an_event(source: random.Random) -> NewEvent:
    """Whole entities with parts, patches, links and deletions."""
    word, number = source.choice(WORDS), source.randrange(1_000)
    match source.randrange(10):
        case 0:
            return NewEvent("entity.deleted", {})
        case 1 | 2:
            return NewEvent("entity.linked", {"kind": "knows", "target": f"thing-{source.randrange(STREAMS)}"})
        case 3:
            return NewEvent("entity.unlinked", {"kind": "knows", "target": f"thing-{source.randrange(STREAMS)}"})
        case 4 | 5 | 6:
            return NewEvent("entity.patched", {"text": f"{word} {number}", "properties": {word: number}})
    parts = [{"key": f"p{n}", "kind": "part", "name": word} for n in range(source.randrange(4))]
    return NewEvent("entity.upserted", {"kind": "thing", "name": word, "text": f"{word} {number}", "parts": parts})


@dataclass
class Workload:
    """Appends until it is stopped. ``sent``: the ids of each stream's events, in their order."""

    dsn: str
    seed: int
    sent: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def running(self) -> Iterator[None]:
        with alongside(self._run, name="workload"):
            yield

    def _run(self, ended: threading.Event) -> None:
        source = random.Random(self.seed)
        with connected(self.dsn) as connection:
            while not ended.wait(PAUSE_S):
                stream = f"thing-{source.randrange(STREAMS)}"
                events = [an_event(source) for _ in range(source.randrange(1, 4))]
                append(connection, stream, events)
                self.sent[stream] += [str(e.id) for e in events]


def assert_log_holds_each_event_once(side: ReadSide, workload: Workload) -> None:
    with connected(side.write.dsn) as connection:
        for stream, ids in workload.sent.items():
            events = list(read_stream(connection, stream, side.write.registry))
            assert [str(e.id) for e in events] == ids
            assert [e.version for e in events] == list(range(1, len(ids) + 1))


def assert_broker_has_each_event_in_order(side: ReadSide, topic: str, workload: Workload) -> None:
    """Duplicates are allowed (at least once), but a version comes only when all before it have come."""
    broker: Broker = side.write.broker()
    seen: dict[str, list[str]] = defaultdict(list)
    try:
        ends = {tp: end for tp, end in broker.ends([topic]).items() if end}
        reader = broker.consumer(f"check.{topic}", [topic], lambda _: None)
        reached = dict.fromkeys(ends, 0)
        while any(reached[tp] < end for tp, end in ends.items()):
            for d in reader.poll(1_000, 1.0):
                event = read_event(d, side.write.registry)
                ids = seen[event.stream]
                assert event.version <= len(ids) + 1, f"{event.stream}: {event.version} after {len(ids)}"
                if event.version == len(ids) + 1:
                    ids.append(str(event.id))
                else:
                    assert ids[event.version - 1] == str(event.id)
                reached[next(tp for tp in ends if tp == (d.topic, d.partition))] = d.offset + 1
        reader.close()
    finally:
        broker.close()
    assert seen == workload.sent


def assert_store_equals_log(side: ReadSide, name: str, generation: str) -> None:
    """Every stream folded as plainly as can be, and every record of it found in the store; no other is there."""
    plan = side.plan(name)
    states: dict[str, object] = {}
    with connected(side.write.dsn) as connection:
        for event in read_by_stream(connection, side.write.registry, categories=plan.projection.categories):
            states[event.stream] = plan.projection.fold(states.get(event.stream), event)
    records = [r for stream, s in states.items() if s is not None for r in plan.projection.records(stream, s)]
    expected = {r.key: digest(r) for r in embedded_records(records, plan.embed)}
    with side.open_sink(name) as sink:
        sink.prepare(generation)
        held = {s.key: s.digest for s in sink.scan(generation)}
    assert held.keys() == expected.keys(), name
    assert [k for k in held if held[k] != expected[k]] == [], name
    assert held


def ready(dsn: str) -> bool:
    try:
        with connected(dsn):
            return True
    except (DatabaseError, psycopg.Error):
        return False
