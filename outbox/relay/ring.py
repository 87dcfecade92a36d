"""Emptying the outbox's ring: parts whose rows are all published are truncated, never deleted from."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from outbox.database import Connection

PARTS: Final = 16
PART_ROWS: Final = 131_072
"""Both as in 0001_log.sql."""

_FILLED: Final = """
SELECT n FROM generate_series(0, %(parts)s - 1) n
WHERE pg_relation_size(format('outbox.outbox_%%s', n)::regclass) > 0
  AND n <> (SELECT last_value / %(rows)s %% %(parts)s FROM outbox.outbox_seq)
"""
# Every relay that has a cursor must be done with the rows; the first comparison lets the index on xid find few.
_UNPUBLISHED: Final = """
SELECT EXISTS (
    SELECT FROM outbox.relay_cursor c JOIN {} o
    ON o.xid >= pg_snapshot_xmin(c.a) AND NOT pg_visible_in_snapshot(o.xid, c.a))
"""


def trim(connection: Connection) -> tuple[int, int]:
    """Truncate every part whose rows all relays have published, but the producers' current one.

    Goes by the cursors that are written down, so whoever calls it, and when, can lose nothing. A part in use
    by an open transaction is left for the next time: its lock is tried, never waited for, so producers are
    never held up. Returns how many parts were emptied and how many are left for the next time.
    """
    parts = [n for (n,) in connection.execute(_FILLED, {"parts": PARTS, "rows": PART_ROWS}).fetchall()]
    emptied = sum(_truncate(connection, sql.Identifier("outbox", f"outbox_{n}")) for n in parts)
    return emptied, len(parts) - emptied


def _truncate(connection: Connection, part: sql.Identifier) -> bool:
    try:
        with connection.transaction():
            # Behind this lock no transaction that wrote here is open; a later statement sees all it committed.
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(part))
            row = connection.execute(sql.SQL(_UNPUBLISHED).format(part)).fetchone()
            if row is None or row[0]:
                return False
            connection.execute(sql.SQL("TRUNCATE {}").format(part))
            return True
    except psycopg.errors.LockNotAvailable:
        return False
