"""Emptying the outbox's ring: parts whose rows are all published are truncated, never deleted from."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from outbox.database import Connection
from outbox.relay.cursor import Cursor

PARTS: Final = 16
PART_ROWS: Final = 131_072
"""Both as in 0001_log.sql."""

_FILLED: Final = """
SELECT n FROM generate_series(0, %(parts)s - 1) n
WHERE pg_relation_size(format('outbox.outbox_%%s', n)::regclass) > 0
  AND n <> (SELECT last_value / %(rows)s %% %(parts)s FROM outbox.outbox_seq)
"""
_UNPUBLISHED: Final = "SELECT EXISTS (SELECT FROM {} WHERE NOT pg_visible_in_snapshot(xid, %s::pg_snapshot))"


def trim(connection: Connection, cursor: Cursor) -> int:
    """Truncate every part, but the producers' current one, whose rows are all visible in ``cursor.a``.

    ``cursor`` must be one that is written down already. A part in use by an open transaction is left for the
    next time: the lock is tried, never waited for, so producers are never held up. Returns the parts emptied.
    """
    parts = [n for (n,) in connection.execute(_FILLED, {"parts": PARTS, "rows": PART_ROWS})]
    return sum(_truncate(connection, sql.Identifier("outbox", f"outbox_{n}"), cursor) for n in parts)


def _truncate(connection: Connection, part: sql.Identifier, cursor: Cursor) -> bool:
    try:
        with connection.transaction():
            # Behind this lock no transaction that wrote here is open; a later statement sees all it committed.
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(part))
            row = connection.execute(sql.SQL(_UNPUBLISHED).format(part), [cursor.a.text]).fetchone()
            if row is None or row[0]:
                return False
            connection.execute(sql.SQL("TRUNCATE {}").format(part))
            return True
    except psycopg.errors.LockNotAvailable:
        return False
