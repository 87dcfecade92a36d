"""What the product costs while nothing happens, and what it leaves behind: ``python -m benchmarks.idle``.

Relay and projectors are processes of their own, started as ``outbox relay`` and ``outbox project NAME``. Their
processor time is the system's; the growth of tables is what PostgreSQL says of their size on disk, scaled from the time
watched to an hour. Then a burst of events goes through the outbox while the relay runs, and its tables are looked at
until they are small again.
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
from typing import Any, Final

import psutil

from benchmarks.append import DATA
from benchmarks.databases import fresh_database
from benchmarks.entities import CATEGORY
from benchmarks.processes import process
from benchmarks.results import Result, at_most
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import Connection, connected
from outbox.event import NewEvent
from outbox.log.bulk import bulk_append
from projectors import ledger
from projectors.layout import EMBEDDED, SERVERS

WINDOW_S: Final = 20.0
SETTLED_S: Final = 5.0
"""After the first generations serve: what is started once has started."""
HOUR_S: Final = 3_600
EVENTS: Final = 1_000_000
STREAM_EVENTS: Final = 100
STREAMS_A_TRANSACTION: Final = 100
OUTBOX_MIB: Final = 64
WITHIN_S: Final = 300.0
"""For the projectors to serve, and for a burst to be published."""
EMPTIED_WITHIN_S: Final = 60.0
"""A relay empties a quiet outbox every 30 s."""
LOOK_S: Final = 0.25
MIB: Final = 1 << 20

_SIZES: Final = """
SELECT c.relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'outbox' AND c.relkind = 'r'
"""
_PUBLISHED: Final = 'SELECT coalesce(sum("offset" + 1), 0)::bigint FROM outbox.published'


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = stack.enter_context(fresh_database(servers.address("postgres")))
        connection = stack.enter_context(connected(dsn))
        environment = os.environ | settings(servers, given.mode, dsn, folder)
        relay = stack.enter_context(process(environment, folder, "relay"))
        with ExitStack() as projecting:
            projectors = {n: projecting.enter_context(process(environment, folder, "project", n)) for n in EMBEDDED}
            until(lambda: all(ledger.serving(connection, name) for name in projectors), "the projectors do not serve")
            time.sleep(SETTLED_S)
            yield from idle({"relay": relay, **projectors}, connection, given)
        yield outbox(dsn, connection, given.events)


def idle(
    processes: Mapping[str, psutil.Process], connection: Connection, given: argparse.Namespace
) -> Iterator[Result]:
    """Shares of a core in each window, and the growth of all tables over all windows."""
    shares: dict[str, list[float]] = {name: [] for name in processes}
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


def outbox(dsn: str, connection: Connection, events: int) -> Result:
    """The size of the outbox's tables, a while after all is relayed."""
    published, peak = published_now(connection), 0
    for written in burst(dsn, events):
        peak = max(peak, outbox_bytes(connection))
        if written == events:
            until(lambda: published_now(connection) >= published + events, "the burst is not published")
    ended = time.monotonic()
    while outbox_bytes(connection) > OUTBOX_MIB * MIB and time.monotonic() < ended + EMPTIED_WITHIN_S:
        time.sleep(LOOK_S)
    note = f"{peak / MIB:,.0f} MiB at most, that small {time.monotonic() - ended:.0f} s after the last was relayed"
    question = f"the outbox's tables after {events:,} relayed events"
    return Result(question, "MiB", {"ours": [outbox_bytes(connection) / MIB]}, at_most(OUTBOX_MIB), note)


def burst(dsn: str, events: int) -> Iterator[int]:
    """Append events in streams of a hundred; gives the number written so far after each transaction."""
    written = 0
    with connected(dsn) as connection:
        while written < events:
            streams = min(STREAMS_A_TRANSACTION, -(-(events - written) // STREAM_EVENTS))
            with connection.transaction():
                done = bulk_append(connection, (batch(min(STREAM_EVENTS, events - written)) for _ in range(streams)))
            written += done.events
            yield written


def batch(events: int) -> Any:
    return f"{CATEGORY}-{uuid.uuid4().hex}", 0, [NewEvent("entity.upserted", DATA) for _ in range(events)]


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
    return {str(name): int(size) for name, size in connection.execute(_SIZES)}


def outbox_bytes(connection: Connection) -> int:
    return sum(size for name, size in sizes(connection).items() if name.startswith("outbox_"))


def published_now(connection: Connection) -> int:
    row = connection.execute(_PUBLISHED).fetchone()
    return int(row[0]) if row else 0


def until(condition: Callable[[], object], otherwise: str) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} after {WITHIN_S:g} s")
        time.sleep(LOOK_S)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--window", type=float, default=WINDOW_S, help=f"seconds of a round ({WINDOW_S:g})")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"through the outbox ({EVENTS:,})")
    parser.add_argument("--mode", choices=["embedded", "servers"], default="embedded", help="broker and stores")
    given = parser.parse_args()
    if given.quick:
        given.window, given.events = 1.0, 2_000
    run("idle", ["postgres", *(["kafka", *SERVERS.values()] if given.mode == "servers" else [])], measure, given)


if __name__ == "__main__":
    main()
