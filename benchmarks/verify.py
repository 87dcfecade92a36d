"""What does a verification cost, quick beside full, and does it find one record? ``python -m benchmarks.verify``

One log of small streams, one generation of it in each store; then one record is made missing, stale, too many and
different in turn, past our own sinks where a store allows it, looked for, and put right. Bytes are what the
verifying process read from the store's socket (through a proxy that counts), or from its files.
"""

from __future__ import annotations

import argparse
import json
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

from deploy.local.resolve import resolve
from outbox.codec import Registry
from outbox.database import Connection, connect, connected
from outbox.event import Event
from outbox.log.migrate import migrate
from projectors import ledger
from projectors import verify as verifying
from projectors.model import model
from projectors.pipeline import Plan, embedded
from projectors.record import Change, Document, Node, Record, Row, Vector
from projectors.verify import Report, Verifier

RESULTS = Path(__file__).parent / "results"
CATEGORY = "item"
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
        return Vector(key, TEXT, {"n": n}, np.random.default_rng(n).standard_normal(DIMENSIONS).astype("f4"))
    if form is Node:
        return Node(key, "Item", key, {"n": n, "text": TEXT})
    return Document(key, "item", key, TEXT, {"n": n})


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


def measure(bench: Bench, records: int) -> dict[str, Any]:
    """Clean verifications both ways, then one wrong record of each kind, one after the other, and a repair."""
    figures: dict[str, Any] = {}
    for how, quick in (("full", False), ("quick", True)):
        report, seconds, received = bench.verify(quick=quick)
        assert report.clean, report.differences[:3]
        assert report.records == records
        figures[how] = {"seconds": round(seconds, 2), "bytes": received}
    hurt: list[str] = []
    for number, kind in enumerate(("missing", "stale", "extra")):
        hurt.append(bench.hurt(kind, records // 3 + 1_000 * number))
        if kind == "extra":
            hidden = bench.hurt("different", records // 4)
        report, seconds, received = bench.verify(quick=True)
        found = sorted(d.key for d in report.differences) == sorted(hurt)
        figures[f"{kind}, quick"] = {"found": found, "seconds": round(seconds, 2), "bytes": received}
    report, seconds, received = bench.verify(quick=False)
    found = sorted(d.key for d in report.differences) == sorted([*hurt, hidden])
    figures["all and one changed behind its mark, full"] = {"found": found, "seconds": round(seconds, 2)}
    Verifier(bench.connection, bench.plan, bench.sink, "g1", bench.registry).repair(report)
    figures["clean once repaired"] = bench.verify(quick=True)[0].clean
    return figures


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
    parts = urlsplit(dsn if server == "postgres" else address(server))
    proxy = Counting((parts.hostname or "", parts.port or 0))
    user = f"{parts.username}@" if parts.username else ""
    through = parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()
    settings = {"dsn": through} if server == "postgres" else {"url": through}
    with entry_points(group="outbox.sinks")[entry].load()(projection, settings) as sink:
        try:
            yield sink, lambda: proxy.received
        finally:
            sink.drop("g1")


def main() -> None:
    """Run and print the figures; write them to results/verify.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("stores", nargs="*", default=list(STORES))
    options = parser.parse_args()
    verifying.SETTLE_S = verifying.UNRELAYED_S = 0.0  # type: ignore[misc]  # nothing is in flight
    results: dict[str, Any] = {}
    servers = ["postgres", *(s for name in options.stores if (s := STORES[name][0]) and s != "postgres")]
    with ExitStack() as stack:
        running = stack.enter_context(resolve(servers))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = stack.enter_context(database(running.address("postgres")))
        connection = stack.enter_context(connected(dsn))
        migrate(connection)
        registry = Registry.load()
        fill(connection, registry, options.records)
        for store in options.stores:
            with opened(store, running.address, folder, dsn) as (sink, received):
                plan = Plan(store.replace(" ", "_"), store, Items(STORES[store][1]), ())
                results[store] = measured(Bench(connection, plan, sink, registry, received), options.records)
            print(store, json.dumps(results[store], indent=1), flush=True)
            write(options.records, results)


def write(records: int, results: Mapping[str, Any]) -> None:
    """Put the results beside those of other stores, of as many records."""
    path = RESULTS / "verify.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    former = known["stores"] if known.get("records") == records else {}
    RESULTS.mkdir(exist_ok=True)
    figures = {"records": records, "stores": {**former, **results}}
    path.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def measured(bench: Bench, records: int) -> dict[str, Any]:
    """Load it, and measure."""
    began = time.monotonic()
    bench.load()
    return {"load_s": round(time.monotonic() - began, 1), **measure(bench, records)}


@contextmanager
def database(server: str) -> Iterator[str]:
    """A new database on the server."""
    name = f"bench_{uuid.uuid4().hex[:10]}"
    with connect(server) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


if __name__ == "__main__":
    main()
