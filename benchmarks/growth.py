"""How cost grows with size, on the write side: ``python -m benchmarks.growth``.

* Appends by the number of events in a transaction, beside raw psycopg, which sends bytes that were made beforehand.
* A relay's drain by the number of rows that wait, beside its own at the fewest; into Kafka by the poll engine and
  confluent-kafka. It must not slow down with the backlog it is there to work off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import psycopg

from benchmarks.append import DATA, ENCODED, EVENTS, OUTBOXES, Turn, stream
from benchmarks.databases import fresh_database
from benchmarks.measuring import interleaved
from benchmarks.relay import KEYS, Relays
from benchmarks.results import Result, at_least, beside
from benchmarks.running import options, run
from benchmarks.waiting import Backlog
from benchmarks.writers import WARM
from deploy.local.resolve import Resolved
from outbox.event import NewEvent, uuid7
from outbox.log.append import append

BATCHES: Final = (1, 10, 100, 1_000)
WAITING: Final = (10_000, 30_000, 100_000)
SECONDS: Final = 0.5
WITHIN: Final = 0.2


def append_many(batch: int, connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), [NewEvent("entity.upserted", DATA) for _ in range(batch)], expected="none")
    connection.commit()
    return batch


def raw_many(batch: int, connection: psycopg.Connection[Any]) -> int:
    parameters = [stream(), [uuid7() for _ in range(batch)], [ENCODED] * batch]
    positions = [position for (position,) in connection.execute(EVENTS, parameters)]
    connection.execute(OUTBOXES, [positions])
    connection.commit()
    return batch


def rate(dsn: str, turn: Turn, seconds: float) -> float:
    """Events a second of one writer, after some transactions that warm up."""
    with psycopg.connect(dsn) as connection:
        for _ in range(WARM):
            turn(connection)
        began, events = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            events += turn(connection)
        return events / (time.perf_counter() - began)


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for batch in given.batches if given.only in "append" else ():
        yield appends(servers, batch, given)
    if given.only in "drain":
        yield from drains(servers, given)


def appends(servers: Resolved, batch: int, given: argparse.Namespace) -> Result:
    with fresh_database(servers.address("postgres")) as dsn:
        ways = {"ours": append_many, "psycopg": raw_many}
        turns = {name: partial(rate, dsn, partial(way, batch), given.seconds) for name, way in ways.items()}
        rates = interleaved(turns, given.rounds, warm_up=0 if given.quick else 1)
    return Result(f"append, {batch:,} events a transaction", "events/s", rates, note="1 writer, in this process")


def drains(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Each number of waiting rows in a database of its own."""
    rates: dict[str, list[float]] = {f"{rows:,}": [] for rows in given.waiting}
    for _ in range(given.rounds):
        for rows in given.waiting:
            rates[f"{rows:,}"].append(drained(servers, rows))
    least, *others = rates
    for rows in others:
        samples = {rows: rates[rows], f"{least} rows": rates[least]}
        question = f"drain of {rows} waiting rows beside one of {least}: rate"
        yield beside(question, samples, (rows, f"{least} rows"), "rows/s", at_least(1 - WITHIN))


def drained(servers: Resolved, rows: int) -> float:
    """Rows a second; what is published with the first page is not timed, so there must be more."""
    with fresh_database(servers.address("postgres")) as dsn:
        relays = Relays(Backlog(dsn, rows, KEYS), servers.address("kafka"))
        relays.prepare("poll", "confluent")
        return relays.drain("poll", "confluent")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="events in a transaction")
    parser.add_argument("--waiting", type=int, nargs="+", default=WAITING, help="rows, the fewest first")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a turn of appends ({SECONDS:g})")
    given = parser.parse_args()
    if given.quick:
        given.batches, given.waiting, given.seconds = (1, 10), (6_000, 12_000), 0.05
    run("growth", ["postgres", "kafka"], measure, given)


if __name__ == "__main__":
    main()
