"""The whole chain, from files to every store: ``python -m benchmarks.chain [--mode MODE]``.

Real Python files, a seeded sample of all that are installed, are read as ``outbox ingest`` reads them: an event a file,
a record for it and for each of its definitions. The clock runs from the first file until every store has all of them,
by way of the log, the relay, the broker and three projectors that had one event to do before.

* ``embedded``: relay and projectors are threads of one process beside the ingest, as in ``outbox demo``; the local
  broker, Chroma, Ladybug and Tantivy.
* ``servers``: relay and projectors are processes; Kafka, Chroma, Neo4j and Elasticsearch.

The reference is the slowest of these stores alone: the finished records, embedded and in memory, by its own bulk API
(``benchmarks/natives``) in its best batch size, which is looked for first; that warms the servers up. Edges whose end
is no record are left out of it: a COPY refuses them.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import natives
from benchmarks.corpus import copied
from benchmarks.databases import fresh_database
from benchmarks.elsewhere import elsewhere
from benchmarks.freshness import drop
from benchmarks.idle import settings, until
from benchmarks.measuring import interleaved, say
from benchmarks.processes import processes
from benchmarks.projector import rate
from benchmarks.results import Result, at_least
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import Connection, connected
from outbox.event import NewEvent
from outbox.ingest import ingest
from outbox.ingest.postgres import PostgresLog
from outbox.log.append import append
from outbox.log.statement import Token
from outbox.logs import configure_logging
from outbox.settings import load
from projectors import ledger
from projectors.layout import EMBEDDED, SERVERS
from projectors.model import model
from projectors.pipeline import embedded_records
from projectors.record import Node, Record
from projectors.wait import wait_for
from projectors.wiring import ReadSide, Running, open_read_side

FILES: Final = 60
ALL: Final = 10_000
STORES: Final = {"embedded": EMBEDDED, "servers": SERVERS}
TARGET: Final = at_least(0.8)
FIRST_AIM: Final = at_least(10_000)
WARM: Final = "python-warm"
"""A stream whose one event goes the whole way first, so that topics and their readers are there."""
WITHIN_S: Final = 800.0
MINUTE: Final = 60.0


@dataclass(frozen=True)
class Reference:
    """The records of the corpus by store, and the best batch size of each."""

    side: ReadSide
    records: Mapping[str, Sequence[Record]]
    batches: dict[str, int] = field(default_factory=dict)
    took_s: dict[str, list[float]] = field(default_factory=dict)

    def slowest_s(self) -> float:
        """The seconds that the slowest store takes alone."""
        for store in self.records:
            self.took_s.setdefault(store, []).append(self.load_s(store, self.batches[store]))
        return max(times[-1] for times in self.took_s.values())

    def choose_batches(self, sizes: Sequence[int]) -> None:
        """Note the batch size that is quickest for each store."""
        for store in self.records:
            self.batches[store] = sizes[0] if len(sizes) == 1 else min(sizes, key=partial(self.load_s, store))

    def load_s(self, store: str, batch: int) -> float:
        records = self.records[store]
        with natives.opened(store, self.side.store_settings(store), f"n{uuid.uuid4().hex[:12]}") as native:
            return 1 / rate(1, lambda: native.load(records, batch))

    def said(self) -> str:
        """Each store's own rate."""
        rates = {store: len(self.records[store]) / median(times) for store, times in self.took_s.items()}
        return ", ".join(f"{store} {each:,.0f}/s" for store, each in rates.items())


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = copied(given.files, folder, given.corpus)
        for mode in [mode for mode in STORES if given.mode in (mode, "both")]:
            yield from compared(servers, mode, folder, count, given)


def compared(servers: Resolved, mode: str, folder: Path, count: int, given: argparse.Namespace) -> Iterator[Result]:
    """Ours and the slowest store by turns, in files a minute."""
    ingested_s: list[float] = []
    with ExitStack() as stack:
        reference = prepared(stack, servers, mode, folder)
        reference.choose_batches([given.batch] if given.batch else natives.BATCHES)
        say(f"  {mode}: {count} files, batches {reference.batches}")

        def ours() -> float:
            ingest_s, whole_s = carried(servers, mode, folder)
            ingested_s.append(ingest_s)
            return count / whole_s * MINUTE

        turns = {"ours": ours, "slowest store's bulk": lambda: count / reference.slowest_s() * MINUTE}
        rates = interleaved(turns, given.rounds, warm_up=0)
        total = len(next(iter(reference.records.values())))
        note = (
            f"{count:,} files, {total:,} records in each store; all were in the log after "
            f"{median(ingested_s):.1f} s; each store alone: {reference.said()}"
        )
    yield Result(f"whole chain, {mode}", "files/min", rates, TARGET, note)
    yield Result(f"whole chain, {mode}, first aim", "files/min", {"ours": rates["ours"]}, FIRST_AIM)


def prepared(stack: ExitStack, servers: Resolved, mode: str, folder: Path) -> Reference:
    """A log of the corpus that nobody projects, and the records it comes to."""
    data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    dsn = stack.enter_context(fresh_database(servers.address("postgres")))
    os.environ.update(settings(servers, mode, dsn, data))
    side = stack.enter_context(open_read_side(load()))
    with connected(dsn) as connection:
        ingest([folder], PostgresLog(connection, side.write.registry))
        return Reference(side, {side.plan(name).store: records(connection, side, name) for name in side.projecting})


def records(connection: Connection, side: ReadSide, name: str) -> list[Record]:
    """What a projector's store should hold; of edges, those between records."""
    plan = side.plan(name)
    bare = [record for one in model(connection, plan, side.write.registry) for record in one.records]
    keys = {record.key for record in bare}
    return embedded_records([_joined(record, keys) for record in bare], plan.embed)


def _joined(record: Record, keys: set[str]) -> Record:
    if not isinstance(record, Node):
        return record
    return replace(record, edges=tuple(edge for edge in record.edges if edge.target in keys))


def carried(servers: Resolved, mode: str, folder: Path) -> tuple[float, float]:
    """The seconds until all files were in the log, and until all were in every store."""
    with tempfile.TemporaryDirectory() as name, fresh_database(servers.address("postgres")) as dsn:
        environment = settings(servers, mode, dsn, Path(name))
        commands = [["relay"], *(["project", kind] for kind in STORES[mode])]
        with processes(environment, commands if mode == "servers" else []):
            took = elsewhere(_carry, environment, str(folder), threads=mode == "embedded")
        if mode == "servers":
            elsewhere(_drop, environment)
        return took


def _carry(environment: dict[str, str], folder: str, threads: bool) -> tuple[float, float]:
    configure_logging(logging.WARNING)
    os.environ.update(environment)
    with open_read_side(load()) as side, connected(side.write.dsn) as connection:
        with Running(side) if threads else nullcontext() as running:
            until(lambda: all(ledger.serving(connection, name) for name in side.projecting), "no projector serves")
            warm = append(connection, WARM, NewEvent("entity.deleted", {}), registry=side.write.registry)
            awaited(connection, side, warm.token)
            began = time.perf_counter()
            report = ingest([folder], PostgresLog(connection, side.write.registry))
            ingested = time.perf_counter()
            awaited(connection, side, now(connection))
            ended = time.perf_counter()
            if running:
                running.check()
        complete(connection, side, report.events)
        return ingested - began, ended - began


def _drop(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open_read_side(load()) as side:
        drop(side)


def awaited(connection: Connection, side: ReadSide, token: Token) -> None:
    """Wait until every store has what is committed up to there."""
    wait_for(connection, token, {name: side.plan(name).topics for name in side.projecting}, WITHIN_S)


def now(connection: Connection) -> Token:
    """A transaction that comes after all that are committed."""
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    return Token(int(row[0]) if row else 0)


def complete(connection: Connection, side: ReadSide, events: int) -> None:
    """Raises RuntimeError if a projector has parked an event, or has not seen all of them."""
    row = connection.execute("SELECT count(*) FROM outbox.dead_letter").fetchone()
    if row and row[0]:
        raise RuntimeError(f"{row[0]} streams were parked")
    for name in side.projecting:
        seen = connection.execute(
            'SELECT coalesce(sum("offset"), 0)::bigint FROM outbox.checkpoint WHERE projector = %s', [name]
        ).fetchone()
        if not seen or seen[0] < events:
            raise RuntimeError(f"{name} has applied {seen and seen[0]} of {events} events")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--files", type=int, default=FILES, help=f"of the corpus ({FILES:,}; all of it: {ALL:,})")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a folder of further packages")
    parser.add_argument("--mode", choices=[*STORES, "both"], default="both", help="broker and stores (both)")
    parser.add_argument("--batch", type=int, help="records in a bulk call, instead of the best for each store")
    given = parser.parse_args()
    if given.quick:
        given.files, given.batch = 12, natives.BATCHES[0]
    servers = ["kafka", *SERVERS.values()] if given.mode != "embedded" else []
    run("chain", ["postgres", *servers], measure, given)


if __name__ == "__main__":
    main()
