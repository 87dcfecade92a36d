"""What the outbox leaves behind once all is relayed: ``python -m benchmarks.outbox_size [--events N]``.

The server writes events, each in a transaction of its own, while ``outbox relay``, a process, publishes them to Kafka.
The size is what PostgreSQL says of every table of ours but the log, indexes and TOAST included; nobody runs VACUUM
FULL. It is looked at all the way, and then until the tables are small again.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.databases import fresh_database
from benchmarks.idle import sizes, until
from benchmarks.measuring import say
from benchmarks.memory import MIB
from benchmarks.processes import processes
from benchmarks.results import Result, at_most
from benchmarks.running import options, run
from benchmarks.waiting import fill
from deploy.local.resolve import Resolved
from outbox.database import Connection, connected

EVENTS: Final = 500_000
KEYS: Final = 10_000
PART: Final = 100_000
"""Events that one call of the server's procedure writes."""
TARGET: Final = at_most(64)
WITHIN_S: Final = 800.0
EMPTIED_WITHIN_S: Final = 90.0
"""A relay empties a quiet outbox every 30 s."""
LOOK_S: Final = 0.25
LOG: Final = "event"

_PUBLISHED: Final = 'SELECT coalesce(sum("offset" + 1), 0)::bigint FROM outbox.published'


@dataclass
class Watch:
    """The most that the tables came to."""

    peak: int = 0

    def look(self, dsn: str, done: threading.Event) -> None:
        with connected(dsn) as connection:
            while not done.wait(LOOK_S):
                self.peak = max(self.peak, size(connection))


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with fresh_database(servers.address("postgres")) as dsn, connected(dsn) as connection:
        settings = {
            "OUTBOX_MODE": "servers",
            "OUTBOX_PREFIX": f"size{uuid.uuid4().hex[:8]}",
            "OUTBOX_DATABASE__DSN": dsn,
            "OUTBOX_KAFKA__BOOTSTRAP": servers.address("kafka"),
        }
        with processes(settings, [["relay"]]), watched(dsn) as watch:
            yield relayed(dsn, connection, given.events, watch)


def relayed(dsn: str, connection: Connection, events: int, watch: Watch) -> Result:
    """Write events, have them relayed, and wait until the tables are small."""
    began = time.monotonic()
    for written in range(0, events, PART):
        fill(dsn, min(PART, events - written), KEYS)
        say(f"  {written + min(PART, events - written):,} written, {published(connection):,} published")
    until(lambda: published(connection) >= events, "not all is published", WITHIN_S)
    ended = time.monotonic()
    while not TARGET.met_by(size(connection) / MIB) and time.monotonic() < ended + EMPTIED_WITHIN_S:
        time.sleep(LOOK_S)
    note = (
        f"{watch.peak / MIB:,.0f} MiB at most, that small {time.monotonic() - ended:.0f} s after the last was relayed;"
        f" {events / (ended - began):,.0f} events/s written and relayed; no VACUUM FULL"
    )
    question = f"all tables but the log after {events:,} relayed events"
    return Result(question, "MiB", {"ours": [size(connection) / MIB]}, TARGET, note)


@contextmanager
def watched(dsn: str) -> Iterator[Watch]:
    """Look at the size until the end of the block."""
    watch, done = Watch(), threading.Event()
    thread = threading.Thread(target=watch.look, args=(dsn, done))
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def size(connection: Connection) -> int:
    """Bytes of every table of ours but the log."""
    return sum(each for name, each in sizes(connection).items() if name != LOG)


def published(connection: Connection) -> int:
    row = connection.execute(_PUBLISHED).fetchone()
    return int(row[0]) if row else 0


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help=f"through the outbox ({EVENTS:,})")
    given = parser.parse_args()
    if given.quick:
        given.events = 2_000
    run("outbox_size", ["postgres", "kafka"], measure, given)


if __name__ == "__main__":
    main()
