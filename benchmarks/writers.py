"""Writers in processes of their own, that begin together and count what they commit."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final

import psycopg

Transaction = Callable[[], int]
"""Does one transaction and returns its events."""

Opening = Callable[[str], AbstractContextManager[Transaction]]
"""Opens one writer on a DSN. It goes to another process: a module's function, or a partial of one."""

WARM: Final = 10
"""Transactions of each before the clock starts: statements are prepared, buffers filled."""
ANSWER_S: Final = 60
READ: Final = (
    "benchmarks.databases",
    "benchmarks.running",
    "outbox.log.append",
    "eventsourcing.postgres",
    "eventsourcing.domain",
)
"""Modules that a process should find when it begins: to read them takes longer than a turn."""


@contextmanager
def on_a_connection(
    turn: Callable[[psycopg.Connection[Any]], int], dsn: str, *, autocommit: bool = False
) -> Iterator[Transaction]:
    """A writer that has one connection of psycopg's and nothing else."""
    with psycopg.connect(dsn, autocommit=autocommit) as connection:
        yield partial(turn, connection)


def rate(opening: Opening, dsn: str, writers: int, seconds: float) -> float:
    """Events a second of all writers together."""
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(list(READ))
    start, answers = fresh.Barrier(writers), fresh.Queue()
    processes = [fresh.Process(target=_write, args=(opening, dsn, seconds, start, answers)) for _ in range(writers)]
    for process in processes:
        process.start()
    rates = [answers.get(timeout=seconds + ANSWER_S) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(rates))


def _write(opening: Opening, dsn: str, seconds: float, start: Any, answers: Any) -> None:
    with opening(dsn) as transaction:
        for _ in range(WARM):
            transaction()
        start.wait()
        began, events = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            events += transaction()
        answers.put(events / (time.perf_counter() - began))
