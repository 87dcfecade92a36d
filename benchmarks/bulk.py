"""How much of a raw COPY's rate a bulk load reaches: ``python -m benchmarks.bulk``.

10,000 events in 100 streams, in one transaction, into the same two tables. What each is given is made before its
clock starts: events for the product, which encodes Avro, checks, looks up versions and reserves positions; for the
references the finished rows, whose positions come from a range of their own.

* ``psycopg COPY``: psycopg's binary COPY, one ``write_row`` a row.
* ``COPY of ready bytes``: the same rows packed beforehand too: what the server alone takes.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, LiteralString

import psycopg

from benchmarks.append import DATA, ENCODED, stream
from benchmarks.databases import fresh_database
from benchmarks.measuring import interleaved
from benchmarks.results import Result, at_least, beside
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.event import NewEvent, uuid7
from outbox.log.bulk import bulk_append
from outbox.log.copy_format import EVENT_COLUMNS, HEADER, TRAILER, event_row, field, position_rows, timestamp

BATCH: Final = 100
BATCHES: Final = 100
COPY_EVENT: Final = f"COPY outbox.event ({EVENT_COLUMNS}) FROM STDIN (FORMAT BINARY)"
COPY_OUTBOX: Final = "COPY outbox.outbox (position) FROM STDIN (FORMAT BINARY)"

Connection = psycopg.Connection[Any]
Row = tuple[Any, ...]


def load(connection: Connection, batches: list[Any]) -> None:
    bulk_append(connection, batches)


def events(batches: int) -> list[Any]:
    return [(stream(), 0, [NewEvent("entity.upserted", DATA) for _ in range(BATCH)]) for _ in range(batches)]


def copy_rows(connection: Connection, rows: list[Row]) -> None:
    cursor = connection.cursor()
    with cursor.copy(COPY_EVENT) as copy:
        copy.set_types(["int8", "text", "int8", "text", "uuid", "bytea", "jsonb", "timestamptz"])
        for row in rows:
            copy.write_row(row)
    with cursor.copy(COPY_OUTBOX) as copy:
        copy.set_types(["int8"])
        for row in rows:
            copy.write_row(row[:1])


def new_rows(batches: int) -> list[Row]:
    first = uuid.uuid4().int % 2**61 + 2**61
    meta, at, names = psycopg.types.json.Jsonb({}), datetime.now(UTC), [stream() for _ in range(batches)]
    return [
        (first + n, names[n // BATCH], n % BATCH + 1, "entity.upserted", uuid7(), ENCODED, meta, at)
        for n in range(BATCH * batches)
    ]


def copy_bytes(connection: Connection, packed: tuple[bytes, bytes]) -> None:
    cursor = connection.cursor()
    statements: tuple[LiteralString, LiteralString] = (COPY_EVENT, COPY_OUTBOX)
    for statement, rows in zip(statements, packed, strict=True):
        with cursor.copy(statement) as copy:
            copy.write(HEADER + rows + TRAILER)


def new_bytes(batches: int) -> tuple[bytes, bytes]:
    rows = new_rows(batches)
    type_, at = field(b"entity.upserted"), timestamp(rows[0][-1])
    packed = [event_row(row[0], field(row[1].encode()), row[2], type_, row[4], ENCODED, b"{}", at) for row in rows]
    return b"".join(packed), position_rows([row[0] for row in rows])


CONTENDERS: Final[dict[str, tuple[Callable[[int], Any], Callable[[Connection, Any], None]]]] = {
    "bulk_append": (events, load),
    "psycopg COPY": (new_rows, copy_rows),
    "COPY of ready bytes": (new_bytes, copy_bytes),
}
"""What is made beforehand, and what is timed."""


def rate(dsn: str, contender: str, loads: int, batches: int) -> float:
    """Events a second of some loads after one that warms up, each from the first statement to the commit."""
    make, send = CONTENDERS[contender]
    took_s = 0.0
    with psycopg.connect(dsn) as connection:
        for turn in range(loads + 1):
            given = make(batches)
            began = time.perf_counter()
            send(connection, given)
            connection.commit()
            took_s += (time.perf_counter() - began) if turn else 0.0
    return loads * batches * BATCH / took_s


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Each contender in a database of its own: none splits pages that another has filled."""
    batches, loads = (2, 1) if given.quick else (BATCHES, given.loads)
    with ExitStack() as stack:
        databases = {name: stack.enter_context(fresh_database(servers.address("postgres"))) for name in CONTENDERS}
        turns = {name: partial(rate, dsn, name, loads, batches) for name, dsn in databases.items()}
        rates = interleaved(turns, given.rounds)
    for reference, target in (("psycopg COPY", at_least(0.9)), ("COPY of ready bytes", None)):
        yield beside(f"bulk load, {batches * BATCH:,} events", rates, ("bulk_append", reference), "events/s", target)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--loads", type=int, default=4, help="of 10,000 events, in one turn")
    run("bulk", ["postgres"], measure, parser.parse_args())


if __name__ == "__main__":
    main()
