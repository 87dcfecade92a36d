"""Rows the broker refuses for good, and the later rows of the same key, which wait behind them in order.

A parked key stays parked until somebody has its rows tried again (:func:`retry`) or gives up the one that was
refused (:func:`discard`). The leader notices, and publishes what waits, in order: being the only publisher, it
cannot overtake itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson

from outbox.database import Connection
from outbox.errors import DatabaseError
from outbox.log.as_sent import read_as_sent
from outbox.relay.rows import COLUMNS, STANDS, OutboxRow, outbox_rows, standing

BEHIND: Final = "waits behind an earlier row of its key"
"""The reason of a row that was never refused itself."""

REDRIVE_ROWS: Final = 1_000
"""Rows of one key tried again at a time."""

Key = tuple[str, str]
"""Topic and key."""

_PARK: Final = """
INSERT INTO outbox.parked (relay, topic, key, seq, position, headers, payload, reason)
SELECT %(relay)s, r.topic, r.key, r.seq, r.position, r.headers::jsonb, r.payload, r.reason
FROM unnest(%(topics)s::text[], %(keys)s::text[], %(seqs)s::bigint[], %(positions)s::bigint[],
            %(headers)s::text[], %(payloads)s::bytea[], %(reasons)s::text[])
    AS r (topic, key, seq, position, headers, payload, reason)
ON CONFLICT DO NOTHING
"""
# A key goes on if somebody asked for it, or if the row that held it back has been discarded, or its event erased: its
# first row tells, and however many wait behind that are not looked at.
_KEYS: Final = f"""
WITH RECURSIVE k AS (
    (SELECT topic, key FROM outbox.parked WHERE relay = %(relay)s ORDER BY topic, key LIMIT 1)
    UNION ALL
    SELECT n.topic, n.key FROM k CROSS JOIN LATERAL (
        SELECT topic, key FROM outbox.parked WHERE relay = %(relay)s AND (topic, key) > (k.topic, k.key)
        ORDER BY topic, key LIMIT 1) n
)
SELECT k.topic, k.key, coalesce((
    SELECT o.retry OR o.reason = %(behind)s FROM outbox.parked o LEFT JOIN outbox.event e USING (position)
    WHERE o.relay = %(relay)s AND o.topic = k.topic AND o.key = k.key AND {STANDS} ORDER BY o.seq LIMIT 1), true)
FROM k
"""
_ROWS: Final = f"""
SELECT {COLUMNS} FROM outbox.parked o LEFT JOIN outbox.event e USING (position)
WHERE o.relay = %(relay)s AND o.topic = %(topic)s AND o.key = %(key)s AND {STANDS} ORDER BY o.seq LIMIT %(limit)s
"""
_HELD: Final = f"""
SELECT {COLUMNS} FROM outbox.outbox o LEFT JOIN outbox.event e USING (position)
WHERE o.seq = ANY (%(seqs)s) ORDER BY o.seq
"""
# What is erased goes with what is published before or behind it; a page that is not the last does not ask of them all.
_DONE: Final = """
DELETE FROM outbox.parked o WHERE relay = %(relay)s AND topic = %(topic)s AND key = %(key)s
    AND (%(last)s::bigint IS NULL OR seq <= %(last)s) AND (
    seq = ANY (%(seqs)s)
    OR position IS NOT NULL AND NOT EXISTS (SELECT FROM outbox.event e WHERE e.position = o.position)
)
"""
_LEFT: Final = """
SELECT FROM outbox.parked WHERE relay = %(relay)s AND topic = %(topic)s AND key = %(key)s LIMIT 1
"""
_REFUSED_AGAIN: Final = """
UPDATE outbox.parked SET retry = false,
    reason = CASE WHEN seq = %(seq)s THEN %(reason)s ELSE reason END
WHERE relay = %(relay)s AND topic = %(topic)s AND key = %(key)s AND (retry OR seq = %(seq)s)
"""
_LIST: Final = """
SELECT topic, key, seq, position, reason, retry, at FROM outbox.parked WHERE relay = %s ORDER BY topic, key, seq
"""
_RETRY: Final = "UPDATE outbox.parked SET retry = true WHERE relay = %s AND topic = %s AND key = %s"
_DISCARD: Final = """
DELETE FROM outbox.parked WHERE relay = %(relay)s AND topic = %(topic)s AND key = %(key)s
    AND (%(seq)s::bigint IS NULL OR seq = %(seq)s)
"""


@dataclass(frozen=True, slots=True)
class Parked:
    """One row that waits. ``position`` is None for a plain message."""

    topic: str
    key: str
    seq: int
    position: int | None
    reason: str
    retry: bool
    at: datetime


def parked(connection: Connection, relay: str = "relay") -> list[Parked]:
    """Everything that waits, by key and in order."""
    return [Parked(*row) for row in connection.execute(_LIST, [relay])]


def retry(connection: Connection, topic: str, key: str, relay: str = "relay") -> int:
    """Have the leader try the key's rows again, in order; returns how many wait."""
    return connection.execute(_RETRY, [relay, topic, key]).rowcount


def discard(connection: Connection, topic: str, key: str, seq: int | None = None, relay: str = "relay") -> int:
    """Give up one row (None: all rows) of a key, for good; what waits behind it is then published."""
    return connection.execute(_DISCARD, {"relay": relay, "topic": topic, "key": key, "seq": seq}).rowcount


class Parking:
    """The parked keys of one relay, as its leader sees them; few, so they are kept in memory.

    Nothing is written but by :meth:`write`, :meth:`done` and :meth:`refused`, which the leader calls in the
    transaction that its epoch guards.
    """

    def __init__(self, connection: Connection, relay: str, prefix: str) -> None:
        self._connection = connection
        self._relay = relay
        self._prefix = prefix
        self._keys: set[Key] = set()
        self._held: list[tuple[OutboxRow, str]] = []
        self.due()

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def held(self) -> bool:
        """Whether there are rows to :meth:`write`."""
        return bool(self._held)

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Of the rows to :meth:`write`, the seq and the reason."""
        return [(row.seq, reason) for row, reason in self._held]

    def pass_by(self, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        """The rows whose keys are free; the others are held."""
        if not self._keys:
            return list(rows)
        for row in rows:
            if _key(row) in self._keys:
                self.hold(row)
        return [row for row in rows if _key(row) not in self._keys]

    def hold(self, row: OutboxRow, reason: str = BEHIND) -> None:
        """Hold the row back, and its key from now on."""
        self._held.append((row, reason))
        self._keys.add(_key(row))

    def hold_again(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Hold rows that an earlier leader held and did not write down; they stand in the outbox until that is done.

        Raises :class:`~outbox.errors.DatabaseError` if one does not.
        """
        named = dict(reasons)
        found = self._found(_HELD, {"seqs": list(named)}) if named else []
        if len(found) != len(named):
            raise DatabaseError(f"relay {self._relay!r}: {len(named) - len(found)} rows to park are not in the outbox")
        for row in standing(found):
            self.hold(row, named[row.seq])

    def write(self) -> None:
        """Write down what is held."""
        held, self._held = self._held, []
        plain = [row.position is None for row, _ in held]
        self._connection.execute(
            _PARK,
            {
                "relay": self._relay,
                "topics": [row.topic for row, _ in held],
                "keys": [row.key for row, _ in held],
                "seqs": [row.seq for row, _ in held],
                "positions": [row.position for row, _ in held],
                "headers": [_headers(row) if p else None for p, (row, _) in zip(plain, held, strict=True)],
                "payloads": [row.value if p else None for p, (row, _) in zip(plain, held, strict=True)],
                "reasons": [reason for _, reason in held],
            },
        )

    def due(self) -> list[Key]:
        """Look the parked keys up anew and return those to try again."""
        found = self._connection.execute(_KEYS, {"relay": self._relay, "behind": BEHIND}).fetchall()
        self._keys = {(topic, key) for topic, key, _ in found}
        return [(topic, key) for topic, key, due in found if due]

    def rows(self, key: Key) -> list[OutboxRow]:
        """The first rows of a parked key, in order."""
        return self._found(_ROWS, {**self._named(key), "limit": REDRIVE_ROWS})

    def done(self, key: Key, rows: Sequence[OutboxRow]) -> None:
        """These rows are published; with the last one of a key the key is free."""
        self.done_by_seq(key, [row.seq for row in rows])

    def done_by_seq(self, key: Key, seqs: Sequence[int]) -> None:
        """As :meth:`done`."""
        last = max(seqs) if len(seqs) >= REDRIVE_ROWS else None
        self._connection.execute(_DONE, {**self._named(key), "seqs": list(seqs), "last": last})
        if self._connection.execute(_LEFT, self._named(key)).fetchone() is None:  # a row of no columns is falsy
            self._keys.discard(key)

    def refused(self, key: Key, row: OutboxRow, reason: str) -> None:
        """This row was refused again; the key waits for somebody to ask once more."""
        self._connection.execute(_REFUSED_AGAIN, {**self._named(key), "seq": row.seq, "reason": reason})

    def _found(self, query: str, parameters: Mapping[str, object]) -> list[OutboxRow]:
        cursor = self._connection.cursor(binary=True, row_factory=outbox_rows)
        read_as_sent(cursor)
        return cursor.execute(query, {**parameters, "prefix": self._prefix}).fetchall()

    def _named(self, key: Key) -> dict[str, object]:
        return {"relay": self._relay, "topic": key[0], "key": key[1]}


def _key(row: OutboxRow) -> Key:
    return row.topic, row.key


def _headers(row: OutboxRow) -> str:
    return orjson.dumps({name: value.decode() for name, value in row.headers}).decode()
