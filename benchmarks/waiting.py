"""Rows that wait to be relayed: events whose encoded data is 450 bytes, each in a transaction of its own.

The server writes them itself (a procedure that commits after each), so that filling takes seconds; what stands in the
tables and in the write-ahead log is what as many callers of ``append`` would have left there.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from typing import Final

import psycopg
from psycopg import conninfo

from benchmarks.running import Measure, options, run
from outbox.codec import default_registry
from outbox.database import connected

VALUE_BYTES: Final = 450
VARIANTS: Final = 200
"""Different values, so that a codec has no more to gain than with real ones."""
SEED: Final = 20_241
WORDS: Final = 5_000
QUICK_KEYS: Final = 20

PROCEDURE: Final = """
CREATE OR REPLACE PROCEDURE public.benchmark_fill(mark text, total integer, keys integer, data bytea[])
LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN 0 .. total - 1 LOOP
        WITH written AS (
            INSERT INTO outbox.event (stream, version, type, id, data)
            VALUES ('customer-' || mark || n % keys, n / keys + 1, 'entity.upserted', uuidv7(),
                    data[n % cardinality(data) + 1])
            RETURNING position
        )
        INSERT INTO outbox.outbox (position) SELECT position FROM written;
        COMMIT;
    END LOOP;
END $$
"""


def values(count: int = VARIANTS) -> list[bytes]:
    """Encoded data of ``entity.upserted``, of :data:`VALUE_BYTES` each."""
    dice = random.Random(SEED)
    return [_value(text, dice) for text in texts(2 * VALUE_BYTES, count)]


def texts(length: int, count: int = VARIANTS) -> list[str]:
    """Different texts of one length, of words that repeat as words do."""
    dice = random.Random(SEED)
    words = ["".join(dice.choices("etaoinshrdlucmfw", k=dice.randint(2, 9))) for _ in range(WORDS)]
    return [" ".join(dice.choices(words, k=length))[:length] for _ in range(count)]


def _value(text: str, dice: random.Random) -> bytes:
    given = {"kind": "customer", "name": "Ada Lovelace", "properties": {"city": "London", "n": dice.randint(1, 9_999)}}
    length, encoded = VALUE_BYTES, b""
    while len(encoded) != VALUE_BYTES:
        length += VALUE_BYTES - len(encoded) if encoded else 0
        encoded = default_registry().encode("entity.upserted", given | {"text": text[:length]})
    return encoded


def fill(dsn: str, rows: int, keys: int) -> None:
    """Write the rows, to ``keys`` new streams in turn; they are all on disk when this returns."""
    lazy = conninfo.make_conninfo(dsn, options="-c synchronous_commit=off")
    with psycopg.connect(lazy, autocommit=True) as connection:
        connection.execute(PROCEDURE)
        connection.execute(
            "CALL public.benchmark_fill(%s, %s, %s, %s)", [uuid.uuid4().hex, rows, min(keys, rows), values()]
        )
    with connected(dsn) as connection:
        connection.execute("SELECT pg_logical_emit_message(true, 'benchmark', '')")  # a commit that waits for the disk


class Backlog:
    """Rows that several relays of one database drain by turns: filled once a round, by the first whose turn it is."""

    def __init__(self, dsn: str, rows: int, keys: int) -> None:
        self.dsn, self.rows, self._keys = dsn, rows, keys
        self._filled = 0
        self._turns: Counter[str] = Counter()

    def ready(self, contender: str) -> int:
        """See that a contender has rows to drain, and say how many."""
        self._turns[contender] += 1
        while self._filled < self._turns[contender]:
            fill(self.dsn, self.rows, self._keys)
            self._filled += 1
        return self.rows


def run_on_rows(
    name: str, description: str | None, measure: Measure, rows: int, keys: int, *, quick_rows: int = 400
) -> None:
    """The command line of a benchmark of rows that wait. Of the options, ``rows`` and ``keys`` are the defaults."""
    parser = options(description)
    parser.add_argument("--rows", type=int, default=rows, help=f"that wait in each turn ({rows:,})")
    parser.add_argument("--keys", type=int, default=keys, help=f"streams they belong to ({keys:,})")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.keys = quick_rows, QUICK_KEYS
    run(name, ["postgres", "kafka"], measure, given)
