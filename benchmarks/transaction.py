"""What an append adds to a transaction of five statements of the caller's: ``python -m benchmarks.transaction``.

The five are pgbench's own (TPC-B like: three updates, a select, an insert), by psycopg, in one process. The append of
one event is the sixth, in the same transaction; each transaction is timed from its first statement to the answer to its
COMMIT. Round trips are counted in libpq's trace of the protocol: one for every time the server says it is ready.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import conninfo

from benchmarks.append import DATA, stream
from benchmarks.databases import fresh_database, pgbench
from benchmarks.measuring import interleaved
from benchmarks.results import Result, at_most, beside
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.event import NewEvent
from outbox.log.append import append

TRACED: Final = 20
ACCOUNTS: Final = 100_000
"""Of pgbench's smallest scale."""

Connection = psycopg.Connection[Any]
Transaction = Callable[[Connection], None]


def five(connection: Connection) -> None:
    """pgbench's statements."""
    account, amount = random.randrange(1, ACCOUNTS + 1), random.randrange(-5_000, 5_001)
    connection.execute("UPDATE pgbench_accounts SET abalance = abalance + %s WHERE aid = %s", [amount, account])
    connection.execute("SELECT abalance FROM pgbench_accounts WHERE aid = %s", [account]).fetchone()
    connection.execute("UPDATE pgbench_tellers SET tbalance = tbalance + %s WHERE tid = 1", [amount])
    connection.execute("UPDATE pgbench_branches SET bbalance = bbalance + %s WHERE bid = 1", [amount])
    connection.execute(
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, %s, %s, now())", [account, amount]
    )


def without(connection: Connection) -> None:
    five(connection)
    connection.commit()


def with_append(connection: Connection) -> None:
    five(connection)
    append(connection, stream(), NewEvent("entity.upserted", DATA))
    connection.commit()


CONTENDERS: Final[dict[str, Transaction]] = {"with append": with_append, "without": without}


def milliseconds(dsn: str, transaction: Transaction, count: int) -> float:
    """The mean of ``count`` transactions on one connection."""
    with psycopg.connect(dsn) as connection:
        warm(connection, transaction)
        began = time.perf_counter()
        for _ in range(count):
            transaction(connection)
        return (time.perf_counter() - began) / count * 1_000


def round_trips(dsn: str, transaction: Transaction) -> float:
    """Of one transaction, once its statements are prepared: the least of some, since psycopg prepares a statement
    anew for numbers of another size."""
    with psycopg.connect(dsn) as connection:
        warm(connection, transaction)
        return min(_traced(connection, transaction) for _ in range(TRACED))


def _traced(connection: Connection, transaction: Transaction) -> int:
    with tempfile.TemporaryFile() as trace:
        connection.pgconn.trace(trace.fileno())
        transaction(connection)
        connection.pgconn.untrace()
        trace.seek(0)
        return trace.read().count(b"ReadyForQuery")


def warm(connection: Connection, transaction: Transaction) -> None:
    for _ in range(2 * (connection.prepare_threshold or 0)):
        transaction(connection)


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with fresh_database(servers.address("postgres")) as dsn:
        subprocess.run([pgbench(), "-i", "-q", "-s", "1", dsn], check=True, capture_output=True)
        trips = {name: [round_trips(dsn, transaction)] for name, transaction in CONTENDERS.items()}
        (extra,) = (ours - theirs for ours, theirs in zip(*trips.values(), strict=True))
        yield Result("extra round trips of an append", "round trips", {"ours": [extra]}, at_most(1))
        for question, durable in (("append in a transaction of 5 statements", "on"), ("the same, no fsync", "off")):
            setting = conninfo.make_conninfo(dsn, options=f"-c synchronous_commit={durable}")
            turns = {name: partial(milliseconds, setting, t, given.transactions) for name, t in CONTENDERS.items()}
            taken = interleaved(turns, given.rounds)
            target = at_most(1.25) if durable == "on" else None
            yield beside(question, taken, ("with append", "without"), "ms a transaction", target)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--transactions", type=int, default=500, help="in one turn")
    given = parser.parse_args()
    if given.quick:
        given.transactions = 5
    run("transaction", ["postgres"], measure, given)


if __name__ == "__main__":
    main()
