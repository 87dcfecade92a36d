"""What the product costs while nothing happens, and what it leaves behind: ``python -m benchmarks.idle``.

Relay and projectors are processes of their own, started as ``outbox relay`` and ``outbox project NAME``. Their
processor time is the system's; the growth of tables is what PostgreSQL says of their size on disk, scaled from the time
watched to an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psutil
from psycopg import sql

from benchmarks.databases import fresh_database
from benchmarks.processes import process
from benchmarks.results import Result, at_most
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import Connection, connected
from projectors import ledger
from projectors.layout import EMBEDDED, SERVERS

WINDOW_S: Final = 10.0
SETTLED_S: Final = 5.0
"""After the first generations serve: what is started once has started."""
HOUR_S: Final = 3_600
WITHIN_S: Final = 300.0
"""For the projectors to serve."""
LOOK_S: Final = 0.25

_SIZES: Final = """
SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'outbox' AND c.relkind = 'r'
"""


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = stack.enter_context(fresh_database(servers.address("postgres")))
        connection = stack.enter_context(connected(dsn))
        environment = os.environ | settings(servers, given.mode, dsn, folder)
        relay = stack.enter_context(process(environment, folder, "relay"))
        projectors = {n: stack.enter_context(process(environment, folder, "project", n)) for n in EMBEDDED}
        until(lambda: all(ledger.serving(connection, name) for name in projectors), "the projectors do not serve")
        time.sleep(SETTLED_S)
        yield from idle({"relay": relay, **projectors}, connection, given)


def idle(
    processes: Mapping[str, psutil.Process], connection: Connection, given: argparse.Namespace
) -> Iterator[Result]:
    """Shares of a core in each window, and the growth of all tables over all windows."""
    shares: dict[str, list[float]] = {name: [] for name in processes}
    for table in sizes(connection):  # the first vacuum of a table adds its two maps, 32 KiB, once and for all
        connection.execute(sql.SQL("VACUUM {}").format(sql.Identifier("outbox", table)))
    before, first = sizes(connection), time.monotonic()
    for _ in range(given.rounds):
        used, began = {name: used_s(one) for name, one in processes.items()}, time.monotonic()
        time.sleep(given.window)
        took_s = time.monotonic() - began
        for name, one in processes.items():
            shares[name].append((used_s(one) - used[name]) / took_s * 100)
    watched_s, after = time.monotonic() - first, sizes(connection)
    for name, percent in shares.items():
        yield Result(f"processor of an idle {name}", "% of a core", {"ours": percent}, at_most(1), given.mode)
    grown = {name: size - before.get(name, 0) for name, size in after.items() if size != before.get(name, 0)}
    note = f"watched for {watched_s:.0f} s; bytes by table: {grown or 'none'}"
    hourly = [sum(grown.values()) / 1024 * HOUR_S / watched_s]
    yield Result("growth of all tables while idle", "KiB an hour", {"ours": hourly}, at_most(0), note)


def settings(servers: Resolved, mode: str, dsn: str, folder: Path) -> dict[str, str]:
    """The environment of the processes."""
    stores = EMBEDDED if mode == "embedded" else SERVERS
    mark = uuid.uuid4().hex[:8]
    projectors = {kind: {"projection": kind, "store": store} for kind, store in stores.items()}
    given = {
        "OUTBOX_MODE": mode,
        "OUTBOX_PREFIX": f"idle{mark}",
        "OUTBOX_DATA_DIR": str(folder / "data"),
        "OUTBOX_DATABASE__DSN": dsn,
        "OUTBOX_PROJECTORS": json.dumps(projectors),
    }
    if mode == "embedded":
        return given
    urls = {store: {"url": servers.address(store)} for store in stores.values()}
    return given | {"OUTBOX_KAFKA__BOOTSTRAP": servers.address("kafka"), "OUTBOX_STORES": json.dumps(urls)}


def used_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def sizes(connection: Connection) -> dict[str, int]:
    """Bytes of each table of ours, with its indexes."""
    return {str(name): int(size) for name, size in connection.execute(_SIZES)}


def until(condition: Callable[[], object], otherwise: str, within_s: float = WITHIN_S) -> None:
    """Wait for a condition. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {within_s:g} s")
        time.sleep(LOOK_S)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--window", type=float, default=WINDOW_S, help=f"seconds of a round ({WINDOW_S:g})")
    parser.add_argument("--mode", choices=["embedded", "servers"], default="embedded", help="broker and stores")
    given = parser.parse_args()
    if given.quick:
        given.window = 1.0
    run("idle", ["postgres", *(["kafka", *SERVERS.values()] if given.mode == "servers" else [])], measure, given)


if __name__ == "__main__":
    main()
