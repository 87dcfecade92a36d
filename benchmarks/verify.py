"""What does a verification cost, quick beside full, and does it find one record? ``python -m benchmarks.verify``

One log of small streams, one generation of it in each store; then one record is made missing, stale, too many and
different in turn, past our own sinks where a store allows it; it must be found, and is put right. Bytes are what the
verifying process read from the store's socket (through a proxy that counts), or from its files.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from psycopg import conninfo

from benchmarks.databases import fresh_database
from benchmarks.results import Result
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.codec import Registry
from outbox.database import Connection, connected
from outbox.event import Event
from projectors import ledger
from projectors import verify as verifying
from projectors.model import model
from projectors.pipeline import Plan, embedded
from projectors.record import Change, Document, Node, Record, Row, Vector
from projectors.verify import Report, Verifier

CATEGORY = "item"
RECORDS = 3_000
DIMENSIONS = 64
BATCH = 2_000
PIECE_BYTES = 1 << 16
STORES: Mapping[str, tuple[str | None, type]] = {
    "postgres": ("postgres", Row),
    "chroma": ("chroma", Vector),
    "chroma embedded": (None, Vector),
    "neo4j": ("neo4j", Node),
    "ladybug": (None, Node),
    "elasticsearch": ("elasticsearch", Document),
    "tantivy": (None, Document),
}
"""The server (None: a folder), and what it keeps."""
TEXT = "A record of the usual size: a few sentences of prose, as a person would write them, and no more than that. " * 4


@dataclass(frozen=True)
class Items:
    """One record a stream, in the form that a store takes."""

    form: type
    categories: tuple[str, ...] = (CATEGORY,)

    def fold(self, state: Any, event: Event) -> Any:
        return {**(state or {}), **event.data["properties"]}

    def records(self, stream: str, state: Any) -> Iterator[Record]:
        yield record(self.form, stream, state["n"])


def record(form: type, key: str, n: int) -> Record:
    """The record of an item whose number is ``n``."""
    if form is Row:
        return Row(key, {"n": n, "text": TEXT})
    if form is Vector:
        return Vector(key, TEXT, {"n": n}, _point(n))
    if form is Node:
        return Node(key, "Item", key, {"n": n, "text": TEXT})
    return Document(key, "item", key, TEXT, {"n": n})


def _point(n: int) -> Any:
    return np.random.default_rng(n).standard_normal(DIMENSIONS).astype("f4")


Opened = tuple[Any, Callable[[], int]]


class Counting:
    """A TCP proxy that counts the bytes that come back."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while piece := source.recv(PIECE_BYTES):
                self.received += len(piece) if counted else 0
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@dataclass
class Bench:
    """One store with a generation of the log in it."""

    connection: Connection
    plan: Plan
    sink: Any
    registry: Registry
    received: Callable[[], int]

    def verify(self, *, quick: bool) -> tuple[Report, float, int]:
        """The report, seconds, and bytes received."""
        before, began = self.received(), time.monotonic()
        report = Verifier(self.connection, self.plan, self.sink, "g1", self.registry).verify(quick=quick)
        return report, time.monotonic() - began, self.received() - before

    def load(self) -> None:
        self.sink.drop("g1")
        self.sink.prepare("g1")
        ledger.begin_generation(self.connection, self.plan.name, "g1", [])
        batch: list[Change] = []
        for one in model(self.connection, self.plan, self.registry):
            batch += one.changes()
            if len(batch) >= BATCH:
                self.sink.apply("g1", embedded(batch, None))
                batch = []
        self.sink.apply("g1", batch)

    def hurt(self, kind: str, n: int) -> str:
        """Make one record wrong, as a bug or an older copy of the store would; returns its key.

        ``different`` is content behind its mark's back: a record of other content is written under the mark of the
        right one.
        """
        key = f"{CATEGORY}-{n:07}"
        form = self.plan.projection.form  # type: ignore[attr-defined]
        changes = {
            "missing": Change(key, key, 1, None, repair=True),
            "stale": Change(key, key, 1, record(form, key, n - 1), repair=True),
            "extra": Change(f"{key}#x", key, 1, record(form, f"{key}#x", n)),
            "different": Change(key, key, 1, record(form, key, n + 1), repair=True),
        }
        with marked_as(record(form, key, n)) if kind == "different" else ExitStack():
            self.sink.apply("g1", [changes[kind]])
        return changes[kind].key


@contextmanager
def marked_as(right: Record) -> Iterator[None]:
    """Meanwhile sinks mark what they write as this record."""
    from projectors import marks
    from projectors.sinks import chroma_codec, elasticsearch_form, ladybug, neo4j_form, postgres, tantivy

    modules: Sequence[Any] = (chroma_codec, elasticsearch_form, ladybug, neo4j_form, postgres, tantivy)
    for module in modules:
        module.mark_of = lambda change: marks.mark_of(replace(change, record=right))
    try:
        yield
    finally:
        for module in modules:
            module.mark_of = marks.mark_of


def figures(bench: Bench, records: int, rounds: int) -> Iterator[tuple[str, str, dict[str, list[float]]]]:
    """Clean verifications both ways by turns: what is measured, its unit, and quick beside full."""
    seconds: dict[str, list[float]] = {"ours": [], "full": []}
    received: dict[str, list[float]] = {"ours": [], "full": []}
    for _ in range(rounds):
        for name, quick in (("full", False), ("ours", True)):
            report, took_s, came = bench.verify(quick=quick)
            if not report.clean or report.records != records:
                raise RuntimeError(f"{report.records} of {records} records, differing {report.differences[:3]}")
            seconds[name].append(took_s)
            received[name].append(came)
    yield "time", "s", seconds
    if received["full"][0]:
        yield "read from the store", "bytes", received


def finds(bench: Bench, records: int) -> None:
    """One wrong record of each kind, one after the other, and a repair. Raises RuntimeError for what is not found."""
    hurt: list[str] = []
    for number, kind in enumerate(("missing", "stale", "extra")):
        hurt.append(bench.hurt(kind, records // 3 + number))
        expect(bench, hurt, quick=True)
    hidden = bench.hurt("different", records // 4)
    report = expect(bench, [*hurt, hidden], quick=False)
    Verifier(bench.connection, bench.plan, bench.sink, "g1", bench.registry).repair(report)
    expect(bench, [], quick=True)


def expect(bench: Bench, keys: Sequence[str], *, quick: bool) -> Report:
    """The report, which names just these keys."""
    report, _, _ = bench.verify(quick=quick)
    found = sorted(difference.key for difference in report.differences)
    if found != sorted(keys):
        raise RuntimeError(f"found {found[:5]}, wrong are {sorted(keys)[:5]}")
    return report


def fill(connection: Connection, registry: Registry, records: int) -> None:
    """Streams of one event each, straight into the log."""
    statement = "COPY outbox.event (stream, version, type, id, data) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for n in range(records):
            data = registry.encode("entity.patched", {"properties": {"n": n}})
            copy.write_row((f"{CATEGORY}-{n:07}", 1, "entity.patched", uuid.uuid4(), data))


@contextmanager
def opened(store: str, address: Callable[[str], str], folder: Path, dsn: str) -> Iterator[Opened]:
    """The store's sink through a counting proxy, and the count."""
    server, _ = STORES[store]
    entry = store.partition(" ")[0]
    projection = f"v{uuid.uuid4().hex[:10]}"
    if server is None:
        settings: dict[str, Any] = {"path": str(folder / entry)}
        with entry_points(group="outbox.sinks")[entry].load()(projection, settings) as sink:
            yield sink, lambda: 0
        return
    if server == "postgres":
        known = conninfo.conninfo_to_dict(dsn)
        proxy = Counting((str(known["host"]), int(known["port"] or 0)))
        settings = {"dsn": conninfo.make_conninfo(dsn, host="127.0.0.1", port=proxy.port)}
    else:
        parts = urlsplit(address(server))
        proxy = Counting((parts.hostname or "", parts.port or 0))
        settings = {"url": parts._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()}
    with entry_points(group="outbox.sinks")[entry].load()(projection, settings) as sink:
        try:
            yield sink, lambda: proxy.received
        finally:
            sink.drop("g1")


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Each store in turn, of one log."""
    verifying.SETTLE_S = verifying.UNRELAYED_S = 0.0  # type: ignore[misc]  # nothing is in flight
    registry = Registry.load()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = stack.enter_context(fresh_database(servers.address("postgres")))
        connection = stack.enter_context(connected(dsn))
        fill(connection, registry, given.records)
        for store in given.stores:
            with opened(store, servers.address, folder, dsn) as (sink, received):
                plan = Plan(store.replace(" ", "_"), store, Items(STORES[store][1]), ())
                bench = Bench(connection, plan, sink, registry, received)
                bench.load()
                for what, unit, samples in figures(bench, given.records, given.rounds):
                    yield Result(
                        f"{store}, quick verification: {what}", unit, samples, note=f"{given.records:,} records"
                    )
                finds(bench, given.records)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=RECORDS, help=f"in each store ({RECORDS:,})")
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(STORES))
    given = parser.parse_args()
    if given.quick:
        given.records = 60
    given.stores = given.stores or list(STORES)
    run("verify", sorted({"postgres", *(s for name in given.stores if (s := STORES[name][0]))}), measure, given)


if __name__ == "__main__":
    main()
