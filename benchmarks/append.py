"""How much an append costs beside the two plain inserts it stands for: ``python -m benchmarks.append``.

Contenders write the same rows into the same tables of one server, turn by turn, so that a noisy machine is
noisy for all of them; what counts is the ratio. The product encodes Avro, checks, and decides
the version in the database; the references send bytes that were made beforehand and know the version.

* ``pgbench``: BEGIN, two INSERTs, END, prepared, from C. The data stands in its script, so it is sent once.
* ``psycopg``: the same two INSERTs by hand (arrays for a batch), one transaction, one commit.

On an ``autocommit`` connection an append is a transaction of its own: one round trip, where two INSERTs take four.
``pgbench, one statement`` is the two INSERTs as one, which nobody writes by hand: it says what is left to gain.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import conninfo

from benchmarks import writers
from benchmarks.databases import fresh_database, pgbench
from benchmarks.measuring import interleaved
from benchmarks.results import Result, Target, at_least, beside
from benchmarks.running import options, run
from benchmarks.writers import on_a_connection
from deploy.local.resolve import Resolved
from outbox.codec import default_registry
from outbox.event import NewEvent, uuid7
from outbox.log.append import append

DATA: Final = {"kind": "customer", "name": "Ada Lovelace", "text": "x" * 200, "properties": {"city": "London", "n": 7}}
BATCH: Final = 100

EVENT: Final = (
    "INSERT INTO outbox.event (stream, version, type, id, data, meta)"
    " VALUES (%s, 1, 'entity.upserted', %s, %b, '{}') RETURNING position"
)
OUTBOX: Final = "INSERT INTO outbox.outbox (position) VALUES (%s)"
EVENTS: Final = (
    "INSERT INTO outbox.event (stream, version, type, id, data, meta)"
    " SELECT %s, n, 'entity.upserted', i, d, '{}' FROM unnest(%b::uuid[], %b::bytea[]) WITH ORDINALITY AS r (i, d, n)"
    " RETURNING position"
)
OUTBOXES: Final = "INSERT INTO outbox.outbox (position) SELECT unnest(%b::bigint[])"
PGBENCH: Final = """
BEGIN;
INSERT INTO outbox.event (stream, version, type, id, data, meta)
VALUES ('bench-' || gen_random_uuid(), 1, 'entity.upserted', uuidv7(), '{data}', '{{}}')
RETURNING position \\gset
INSERT INTO outbox.outbox (position) VALUES (:position);
END;
"""
PGBENCH_STATEMENT: Final = """
WITH written AS (
    INSERT INTO outbox.event (stream, version, type, id, data, meta)
    VALUES ('bench-' || gen_random_uuid(), 1, 'entity.upserted', uuidv7(), '{data}', '{{}}') RETURNING position
) INSERT INTO outbox.outbox (position) SELECT position FROM written;
"""
"""The ids rise with time, as ours do: random ones would cost the references more for their index."""

Turn = Callable[[psycopg.Connection[Any]], int]
"""Does one transaction and returns its events."""


@dataclass(frozen=True)
class Case:
    """What is compared: the product's turn and those of its references, by name."""

    name: str
    writers: int
    contenders: dict[str, Turn | str]
    """The turn's function by name, or the script of pgbench's."""
    targets: dict[str, Target]
    """The bound of the ratio, by reference; the others are there to say what bounds it."""
    autocommit: bool = False


def stream() -> str:
    return f"bench-{uuid.uuid4()}"


def append_one(connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), NewEvent("entity.upserted", DATA), expected="none")
    connection.commit()
    return 1


def append_alone(connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), NewEvent("entity.upserted", DATA), expected="none")
    return 1


def append_batch(connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), [NewEvent("entity.upserted", DATA) for _ in range(BATCH)], expected="none")
    connection.commit()
    return BATCH


def encoded() -> bytes:
    return default_registry().encode("entity.upserted", DATA)


ENCODED: Final = encoded()


def raw_one(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(EVENT, [stream(), uuid7(), ENCODED]).fetchone()
    connection.execute(OUTBOX, row)
    connection.commit()
    return 1


def raw_batch(connection: psycopg.Connection[Any]) -> int:
    parameters = [stream(), [uuid7() for _ in range(BATCH)], [ENCODED] * BATCH]
    positions = [position for (position,) in connection.execute(EVENTS, parameters)]
    connection.execute(OUTBOXES, [positions])
    connection.commit()
    return BATCH


ONE: Final[dict[str, Turn | str]] = {"append": append_one, "pgbench": PGBENCH, "psycopg": raw_one}
ALONE: Final[dict[str, Turn | str]] = {
    "append": append_alone,
    "pgbench": PGBENCH,
    "pgbench, one statement": PGBENCH_STATEMENT,
}
MANY: Final[dict[str, Turn | str]] = {"append": append_batch, "psycopg": raw_batch}
CASES: Final = [
    Case("1 writer, 1 event", 1, ONE, {"pgbench": at_least(0.85)}),
    Case("4 writers, 1 event", 4, ONE, {"pgbench": at_least(0.85)}),
    Case("1 writer, 1 event, autocommit", 1, ALONE, {"pgbench": at_least(0.85)}, autocommit=True),
    Case("4 writers, 1 event, autocommit", 4, ALONE, {"pgbench": at_least(0.85)}, autocommit=True),
    Case("1 writer, 100 events", 1, MANY, {"psycopg": at_least(0.9)}),
    Case("4 writers, 100 events", 4, MANY, {"psycopg": at_least(0.9)}),
]


# ---------------------------------------------------------------- running


def pgbench_rate(text: str, dsn: str, writers: int, seconds: float) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(text.format(data=f"\\x{ENCODED.hex()}"))
        script.flush()
        length = ("-T", int(seconds)) if seconds >= 1 else ("-t", 10)
        command = [pgbench(), "-n", "-M", "prepared", "-c", writers, "-j", writers, *length]
        done = subprocess.run([*map(str, command), "-f", script.name, dsn], capture_output=True, text=True, check=False)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
    return float(found[1])


def rate(dsn: str, case: Case, contender: str, seconds: float) -> float:
    dsn = conninfo.make_conninfo(dsn, options="-c synchronous_commit=on")
    turn = case.contenders[contender]
    if isinstance(turn, str):
        return pgbench_rate(turn, dsn, case.writers, seconds)
    return writers.rate(partial(on_a_connection, turn, autocommit=case.autocommit), dsn, case.writers, seconds)


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Every case, every contender turn by turn; each case on a new database."""
    for case in (case for case in CASES if given.only in case.name):
        with fresh_database(servers.address("postgres")) as dsn:
            turns = {name: partial(rate, dsn, case, name, given.seconds) for name in case.contenders}
            rates = interleaved(turns, given.rounds, warm_up=0 if given.quick else 1)
        for reference in (name for name in case.contenders if name != "append"):
            yield beside(case.name, rates, ("append", reference), "events/s", case.targets.get(reference))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=1, help="of one contender's turn; pgbench takes whole ones")
    given = parser.parse_args()
    if given.quick:
        given.seconds = 0.05
    run("append", ["postgres"], measure, given)


if __name__ == "__main__":
    main()
