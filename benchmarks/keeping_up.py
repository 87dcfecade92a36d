"""Do the stores keep up with writers who never pause? ``python -m benchmarks.keeping_up``

Some writers, each a process, commit one-row transactions as fast as ``append`` lets them; the events go through Kafka
into Elasticsearch, by a relay and a projector that are processes, too. How long after the last commit is the last event
there? Asked is Elasticsearch itself, by get, for the last events of every writer; that it has all the others as well is
looked up when the clock has stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Barrier
from typing import Any, Final

from benchmarks.freshness import event, place, side_of
from benchmarks.measuring import say
from benchmarks.natives import parts
from benchmarks.results import Result, at_most
from benchmarks.running import options, run
from benchmarks.watching import Probe, probing
from deploy.local.resolve import Resolved
from outbox.database import connected
from outbox.log.append import append
from projectors import ledger
from projectors.wiring import ReadSide

STORE: Final = "elasticsearch"
TRANSACTIONS: Final = 20_000
WRITERS: Final = (4,)
LAST: Final = 200
"""Events of each writer that are asked for; those before them went to the same partitions long ago."""
WITHIN_S: Final = 120.0
AT_ONCE: Final = 40
PAUSE_S: Final = 0.01
"""Whoever asks for all of them all the time keeps the machine from what is waited for."""
ASKED: Final = 1_000
TARGET: Final = at_most(0.5)


@dataclass(frozen=True)
class Written:
    """What one writer has committed, and when by ``time.monotonic``."""

    began: float
    ended: float
    keys: Sequence[str]


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for writers in given.writers:
        with side_of(servers, [STORE]) as side:
            found = [behind(side, writers, given.transactions) for _ in range(given.rounds)]
        question = f"{given.transactions:,} transactions of {writers} writers until all are in {STORE}"
        note = f"after the last commit; {median(rate for _, rate in found):,.0f} commits/s"
        yield Result(question, "s", {"ours": [late_s for late_s, _ in found]}, TARGET, note)


def behind(side: ReadSide, writers: int, transactions: int) -> tuple[float, float]:
    """The seconds from the last commit until all is there, and the rate of the commits."""
    (name,) = side.projecting
    with side.write.connection() as connection:
        probe = probing(place(side, name, ledger.serving(connection, name)))
    with writing(side.write.dsn, writers, transactions // writers) as written:
        ended = max(one.ended for one in written)
        seen = last_seen(probe, [key for one in written for key in one.keys[-LAST:]])
    complete(probe, [key for one in written for key in one.keys])
    rate = sum(len(one.keys) for one in written) / (ended - min(one.began for one in written))
    say(f"  {seen - ended:.3f} s after the last of {rate:,.0f} commits/s")
    return max(seen - ended, 0.0), rate


@contextmanager
def writing(dsn: str, writers: int, transactions: int) -> Iterator[list[Written]]:
    """So many transactions of each of these writers, all beginning together.

    The writers are there until the end: before who waits for their events could ask, a second would go by in which they
    do nothing but leave.
    """
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["benchmarks.freshness"])
    with fresh.Manager() as shared, ProcessPoolExecutor(writers, fresh) as pool:
        yield list(pool.map(partial(_write, dsn, transactions), [shared.Barrier(writers)] * writers))


def _write(dsn: str, transactions: int, start: Barrier) -> Written:
    mark = uuid.uuid4().hex
    keys = [f"python-{mark}.n{i}" for i in range(transactions)]
    with connected(dsn) as connection:
        start.wait()
        began = time.monotonic()
        for i, key in enumerate(keys):
            append(connection, key, event(i), expected="none")
        return Written(began, time.monotonic(), keys)


def last_seen(probe: Probe, keys: Sequence[str]) -> float:
    """When the last of these was first there. Raises TimeoutError."""
    waiting, deadline = list(keys), time.monotonic() + WITHIN_S
    while True:
        asked = waiting[-AT_ONCE:]
        found = probe(asked)
        now = time.monotonic()
        waiting[-AT_ONCE:] = [key for key in asked if key not in found]
        if not waiting:
            return now
        if now > deadline:
            raise TimeoutError(f"{len(waiting)} of the last events are not there after {WITHIN_S:g} s")
        if len(found) < len(asked):
            time.sleep(PAUSE_S)


def complete(probe: Probe, keys: Sequence[Any]) -> None:
    """Raises RuntimeError if one is not there."""
    missing = [key for part in parts(keys, ASKED) for key in set(part) - probe(part)]
    if missing:
        raise RuntimeError(f"{len(missing)} of {len(keys)} events are not there, {missing[0]} among them")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--transactions", type=int, default=TRANSACTIONS, help=f"of a round ({TRANSACTIONS:,})")
    parser.add_argument("--writers", type=int, nargs="+", default=WRITERS, help="at once, one case each (4)")
    given = parser.parse_args()
    if given.quick:
        given.transactions, given.writers = 200, (2,)
    run("keeping_up", ["postgres", "kafka", STORE], measure, given)


if __name__ == "__main__":
    main()
