"""Capture under pgbench: ``python -m benchmarks.capture``. Each store row is compared with PostgreSQL's own.

* ``kills``: pgbench's tables under its standard load, the capturing process killed three times in between.
* ``snapshot``: all rows of a table read while pgbench runs.
* ``stream``: rows a second, of one transaction and of many, once they stand in the write-ahead log.

Everything runs as processes of the ``outbox`` command: capture, relay, and a projector of ``rows`` into PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from psycopg import conninfo, sql

from benchmarks import databases
from benchmarks.idle import until
from benchmarks.measuring import interleaved
from benchmarks.processes import OUTBOX
from benchmarks.results import Result, at_most
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import connected
from outbox.log.migrate import migrate

TABLES: Final = {
    "pgbench_accounts": "aid",
    "pgbench_tellers": "tid",
    "pgbench_branches": "bid",
    "pgbench_history": "hid",
}
CLIENTS: Final = 2
KILLS: Final = 3
SEED: Final = 1
ROWS_A_SCALE: Final = 100_000
CONVERGED_S: Final = 900.0

HISTORY: Final = "ALTER TABLE pgbench_history ADD COLUMN hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
"""pgbench's own has no key, which capture refuses; pgbench names the columns it inserts."""

# Both sides as PostgreSQL sees them, with nothing of the product's in between. Timestamps are captured as text.
DIFFERENCES: Final = """
SELECT count(*) FROM (
    SELECT {prefix} || {key} AS key, jsonb_strip_nulls(to_jsonb(t) || {text}) AS body FROM {table} t
) s FULL JOIN (
    SELECT key, body::jsonb AS body FROM outbox_rows.rows WHERE starts_with(key, {prefix})
) r USING (key) WHERE s.body IS DISTINCT FROM r.body
"""
ALL_AT_ONCE: Final = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= {rows}"
ONE_BY_ONE: Final = """
DO $$ BEGIN FOR n IN 1..{rows} LOOP UPDATE pgbench_accounts SET abalance = 0 WHERE aid = n; COMMIT; END LOOP; END $$
"""
BACKLOGS: Final = {"one transaction": ALL_AT_ONCE, "a transaction a row": ONE_BY_ONE}
EVENTS: Final = "SELECT count(*) FROM outbox.event"
LAST: Final = "SELECT coalesce(max(position), 0) FROM outbox.event"


@dataclass(frozen=True)
class Site:
    """A database of our own and the settings of the processes that work on it."""

    dsn: str
    settings: dict[str, str]
    cwd: Path

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")} | self.settings
        log = (self.cwd / f"{arguments[0]}.log").open("ab")
        return subprocess.Popen([OUTBOX, "-v", *arguments], env=environment, cwd=self.cwd, stdout=log, stderr=log)

    @contextmanager
    def process(self, *arguments: str) -> Iterator[None]:
        """The command in the background, asked to end with the block."""
        running = self.popen(*arguments)
        try:
            yield
        finally:
            running.terminate()
            running.wait(60)

    def run(self, *arguments: str) -> None:
        """The command, to its end."""
        running = self.popen(*arguments)
        if running.wait(CONVERGED_S):
            raise RuntimeError(f"outbox {' '.join(arguments)}: see {self.cwd}/{arguments[0]}.log")

    def one(self, query: str) -> Any:
        with connected(self.dsn) as connection:
            row = connection.execute(query.encode()).fetchone()
            return row and row[0]


def settings_for(dsn: str) -> dict[str, str]:
    """One process a part, over the local broker; the rows go to the same server."""
    projectors = {"rows": {"projection": "rows", "store": "postgres", "categories": list(TABLES)}}
    return {"OUTBOX_DATABASE__DSN": dsn, "OUTBOX_PROJECTORS": json.dumps(projectors)}


def pgbench(dsn: str, *arguments: str) -> subprocess.Popen[str]:
    """The wheel's pgbench, begun."""
    command = [databases.pgbench(), *arguments, dsn]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def prepare(dsn: str, scale: int) -> None:
    """pgbench's tables, filled, with a key for the history."""
    ended(pgbench(dsn, "-i", "-q", "-s", str(scale)))
    with connected(dsn) as connection:
        connection.execute(HISTORY)


def ended(running: subprocess.Popen[str]) -> str:
    """What it printed; raises if it failed."""
    said, _ = running.communicate()
    if running.returncode:
        raise RuntimeError(f"pgbench failed: {said[-500:]}")
    return said


def load(dsn: str, seconds: float) -> subprocess.Popen[str]:
    """pgbench's standard load (TPC-B like), begun."""
    return pgbench(dsn, "-n", "-c", str(CLIENTS), "-j", "1", "-T", str(max(round(seconds), 1)))


def differences(dsn: str) -> dict[str, int]:
    """Rows of each table that the store has not, has too many, or has otherwise."""
    with connected(dsn) as connection:
        found = {table: connection.execute(_comparison(table, key)).fetchone() for table, key in TABLES.items()}
    return {table: row[0] if row else 0 for table, row in found.items()}


def _comparison(table: str, key: str) -> sql.Composed:
    timed = "jsonb_build_object('mtime', t.mtime::text)" if table == "pgbench_history" else "'{}'::jsonb"
    return sql.SQL(DIFFERENCES).format(
        prefix=sql.Literal(f"{table}-"), key=sql.Identifier("t", key), table=sql.Identifier(table), text=sql.SQL(timed)
    )


def converged(site: Site, within_s: float = CONVERGED_S) -> tuple[dict[str, int], float]:
    """The differences once there are none, or at the end of the wait, and how long it took."""
    begun = time.monotonic()
    while True:
        asked = time.monotonic()
        found = differences(site.dsn) if _serving(site) else {"no generation serves yet": 1}
        waited = time.monotonic() - begun
        if not any(found.values()) or waited > within_s:
            return found, waited
        # The comparison reads everything: it must not take the server from those it waits for.
        threading.Event().wait(max(0.2, 4 * (time.monotonic() - asked)))


def _serving(site: Site) -> bool:
    return bool(site.one("SELECT to_regclass('outbox_rows.rows') IS NOT NULL"))


@dataclass(frozen=True)
class Survived:
    """What became of a load with kills."""

    transactions: int
    converged_s: float
    """From the end of the load until the store was equal."""
    differences: dict[str, int]


def killed(site: Site, seconds: float, kills: int, seed: int) -> Survived:
    """The standard load, with the capturing process killed by signal 9 at moments of the seed's choice."""
    choose = random.Random(seed)
    moments = sorted(choose.uniform(0.05, 0.95) * seconds for _ in range(kills))
    with site.process("relay"), site.process("project", "rows"):
        capture = site.popen("capture", *TABLES)
        running, begun = load(site.dsn, seconds), time.monotonic()
        for moment in moments:
            threading.Event().wait(max(begun + moment - time.monotonic(), 0))
            capture.send_signal(signal.SIGKILL)
            capture.wait()
            capture = site.popen("capture", *TABLES)
        said = ended(running)
        found, waited = converged(site)
        capture.terminate()
        capture.wait(60)
    return Survived(int(said.split("actually processed:")[1].split()[0]), waited, found)


def snapshot(site: Site, rows: int) -> float:
    """Rows a second of a snapshot while pgbench runs."""
    running = load(site.dsn, CONVERGED_S)
    begun = time.monotonic()
    with site.process("capture", *TABLES):
        settled = "SELECT bool_and(state = 'streaming') FROM outbox.captured"
        until(lambda: site.one("SELECT to_regclass('outbox.captured')::text") and site.one(settled), "not all is read")
        seconds = time.monotonic() - begun
        running.terminate()
        running.communicate()
    if site.one(EVENTS) < rows:
        raise RuntimeError("less was captured than there is")
    return rows / seconds


def stream(site: Site, statement: str, rows: int) -> float:
    """Rows a second out of a backlog that this statement makes."""
    with connected(site.dsn, synchronous_commit="off") as connection:
        connection.execute(statement.format(rows=rows).encode())
    begun, before = time.monotonic(), site.one(LAST)
    site.run("capture", "--drain")
    rate = rows / (time.monotonic() - begun)
    if site.one(LAST) - before < rows:
        raise RuntimeError("less was captured than was changed")
    return rate


@contextmanager
def site_of(server: str, scale: int) -> Iterator[Site]:
    """A database with pgbench's tables; gone afterwards."""
    name = f"outbox_bench_{uuid.uuid4().hex[:8]}"
    with connected(server) as connection, tempfile.TemporaryDirectory() as folder:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        dsn = conninfo.make_conninfo(server, dbname=name)
        try:
            with connected(dsn) as fresh:
                migrate(fresh)
            prepare(dsn, scale)
            yield Site(dsn, settings_for(dsn), Path(folder))
        finally:
            drop(connection, name)


def drop(connection: Any, name: str) -> None:
    """The database and its slots, without which it could not be dropped."""
    slots = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE database = %s", [name]).fetchall()
    for (slot,) in slots:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = %s", [slot]
        )
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    server = servers.address("postgres")
    if given.only in "kills":
        with site_of(server, 1) as site:
            done = killed(site, given.seconds, KILLS, SEED)
        note = (
            f"{done.transactions:,} transactions in {given.seconds:g} s; equal {done.converged_s:.1f} s after the last"
        )
        samples = {"ours": [sum(done.differences.values())]}
        yield Result(f"rows that differ after {KILLS} kills", "rows", samples, at_most(0), note)
    if given.only in "snapshot":
        yield Result("snapshot under pgbench", "rows/s", {"ours": [*snapshots(server, given)]})
    if given.only in "stream":
        yield from streams(server, given)


def snapshots(server: str, given: argparse.Namespace) -> Iterator[float]:
    for _ in range(given.rounds):
        with site_of(server, given.scale) as site:
            yield snapshot(site, given.scale * ROWS_A_SCALE)


def streams(server: str, given: argparse.Namespace) -> Iterator[Result]:
    """By turns, of the same tables."""
    with site_of(server, 1) as site:
        site.run("capture", *TABLES, "--drain")
        turns = {name: partial(stream, site, statement, given.rows) for name, statement in BACKLOGS.items()}
        rates = interleaved(turns, given.rounds, 0 if given.quick else 1)
    for name, figures in rates.items():
        note = f"{given.rows:,} rows; the start of the command is part of it"
        yield Result(f"stream of {name}", "rows/s", {"ours": figures}, note=note)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="pgbench's time for the kills (10)")
    parser.add_argument("--scale", type=int, default=1, help="of the snapshot: 100,000 accounts each (1)")
    parser.add_argument("--rows", type=int, default=20_000, help="of the stream (20,000)")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rows = 2.0, 500
    run("capture", ["postgres"], measure, given)


if __name__ == "__main__":
    main()
