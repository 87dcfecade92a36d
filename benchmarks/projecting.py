"""A projector on a log of a benchmark's own, and the stores that the benchmarks take in turn."""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks import natives
from benchmarks.databases import fresh_database
from benchmarks.entities import CATEGORY, PROJECTIONS, fill, records
from benchmarks.natives import Native
from deploy.local.resolve import Resolved
from outbox.database import Connection, connected
from outbox.logs import quiet_unless_configured
from outbox.settings import Settings, load
from projectors import ledger
from projectors.pipeline import Plan
from projectors.record import Record
from projectors.session import Session, Stations
from projectors.wiring import ReadSide, open_read_side

PROJECTOR: Final = "bench"
URLS: Final = ("chroma", "neo4j", "elasticsearch")
"""Servers whose address is a setting of the store; PostgreSQL's is the log's own."""


@dataclass(frozen=True, slots=True)
class Place:
    """A store: the projection that it keeps, the server that it is (None: a folder), and its setting's name."""

    store: str
    projection: str
    server: str | None
    setting: str
    share: float = 1.0
    """Of the records asked for: a slower store is given fewer, so that all together end in time."""

    @property
    def services(self) -> set[str]:
        return {"postgres", *([self.server] if self.server else [])}


PLACES: Final[Sequence[Place]] = (
    Place("chroma", "vectors", "chroma", "url", 0.2),
    Place("neo4j", "graph", "neo4j", "url", 0.5),
    Place("elasticsearch", "documents", "elasticsearch", "url"),
    Place("ladybug", "graph", None, "path"),
    Place("tantivy", "documents", None, "path"),
    Place("postgres", "entity_rows", "postgres", "dsn"),
)


USUAL: Final = ("chroma", "neo4j", "elasticsearch", "postgres")
"""The servers. The embedded ones are measured when they are named, so that all benchmarks together end in time."""


def chosen(names: Sequence[str]) -> list[Place]:
    """The places of these stores; without a name those of :data:`USUAL`. Raises SystemExit for an unknown one."""
    known = {place.store: place for place in PLACES}
    if unknown := set(names) - known.keys():
        raise SystemExit(f"{', '.join(sorted(unknown))}: no store to measure; known are {', '.join(known)}")
    return [known[name] for name in names or USUAL]


@dataclass(frozen=True)
class Feed:
    """A log, relayed through the local broker, and one projector on it whose generations come and go."""

    side: ReadSide
    place: Place
    settings: Mapping[str, Any]

    @property
    def dsn(self) -> str:
        return self.side.write.dsn

    @property
    def plan(self) -> Plan:
        return self.side.plan(PROJECTOR)

    @property
    def stations(self) -> Stations:
        return self.side.stations(PROJECTOR)

    def append(self, total: int, versions: Sequence[int] = (1,)) -> None:
        """Append these versions of ``total`` entities to the log."""
        fill(self.dsn, total, versions)

    def publish(self, total: int, versions: Sequence[int] = (1,)) -> None:
        """Append them, and relay them all."""
        self.append(total, versions)
        self.side.write.relay().run(threading.Event(), drain=True)

    def records(self) -> list[Record]:
        """What the store should hold now."""
        return records(self.dsn, self.plan, self.side.write.registry)

    @contextmanager
    def session(self, messages: int | None = None) -> Iterator[Session]:
        """A projector's session on a new generation, from the beginning of the topic; dropped at the end.

        ``messages``: at most so many in a poll (default: as the settings say).
        """
        stations = self.stations
        if messages is not None:
            usual = stations.resilience
            most = replace(usual, batch=min(usual.batch, messages), batch_max=min(usual.batch_max, messages))
            stations = replace(stations, resilience=most)
        generation = f"g{uuid.uuid4().int % 10**9}"
        with connected(self.dsn) as connection:
            ledger.begin_generation(connection, PROJECTOR, generation, [])
            try:
                with ExitStack() as stack:
                    yield Session(self.plan, stations, generation, threading.Event(), stack)
            finally:
                self.drop(connection, generation)

    def drop(self, connection: Connection, generation: str) -> None:
        """Remove a generation and what is remembered of it."""
        with self.side.open_sink(PROJECTOR) as sink:
            sink.drop(generation)
        ledger.forget_generation(connection, PROJECTOR, generation)

    @contextmanager
    def native(self) -> Iterator[Native]:
        """A new collection of the same store."""
        with natives.opened(self.place.store, self.settings, f"n{uuid.uuid4().hex[:12]}") as native:
            yield native

    def held(self) -> int:
        """How many live records the newest generation has, read back."""
        with connected(self.dsn) as connection, self.side.open_sink(PROJECTOR) as sink:
            newest = ledger.generations(connection, PROJECTOR)[-1].name
            return sum(1 for _ in sink.scan(newest))


@contextmanager
def feed(servers: Resolved, place: Place) -> Iterator[Feed]:
    """A feed on a new database."""
    with read_side(servers, {PROJECTOR: place}) as side:
        yield Feed(side, place, side.store_settings(place.store))


@contextmanager
def read_side(servers: Resolved, places: Mapping[str, Place]) -> Iterator[ReadSide]:
    """A new database, the local broker in it, and a projector for each place, by name."""
    with tempfile.TemporaryDirectory() as folder, fresh_database(servers.address("postgres")) as dsn:
        projectors = {
            name: {"projection": place.projection, "store": place.store, "categories": [CATEGORY]}
            for name, place in places.items()
        }
        given = load(
            data_dir=Path(folder),
            database={"dsn": dsn},
            prefix=f"b{uuid.uuid4().hex[:8]}",
            stores={p.store: {p.setting: servers.address(p.server)} for p in places.values() if p.server in URLS},
            projectors=projectors,
        )
        with opened(given) as side:
            yield side


def opened(settings: Settings) -> AbstractContextManager[ReadSide]:
    """The read side, with the benchmarks' projections beside the built-in ones."""
    quiet_unless_configured()
    return open_read_side(settings, {name: projection((CATEGORY,)) for name, projection in PROJECTIONS.items()})
