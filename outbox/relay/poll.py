"""The poll engine: reads the outbox window by window (see :mod:`outbox.relay.cursor`)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import psycopg

from outbox.database import Connection
from outbox.log.as_sent import read_as_sent
from outbox.relay.cursor import Cursor, Snapshot
from outbox.relay.rows import COLUMNS, STANDS, OutboxRow, outbox_row, outbox_rows, standing
from outbox.relay.sleep import UNLOCK, Sleep

PLANNING: Final[Mapping[str, str]] = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of the connection to read on. The outbox has no statistics worth the name (it fills and empties
all the time), so the one good plan (index on xid, sort, look each event up) is not left to chance. A bitmap of each
of the ring's parts would cost a poll that finds little twice as much, and gain nothing where there is much: rows lie
in the order of their transactions anyway."""

# A window that begins now: what this statement sees is what the new snapshot b sees, so nothing else is asked.
_BEGIN: Final = f"""
WITH s AS MATERIALIZED (SELECT pg_current_snapshot()::text AS b, {UNLOCK}),
o AS (
    SELECT * FROM (
        SELECT * FROM outbox.outbox WHERE xid >= %(xmax)s::text::xid8
        UNION ALL
        SELECT * FROM outbox.outbox WHERE xid = ANY (%(in_progress)s::text[]::xid8[])
    ) r ORDER BY seq LIMIT %(limit)s
)
SELECT s.b, {COLUMNS} FROM s LEFT JOIN o ON true LEFT JOIN outbox.event e USING (position) ORDER BY o.seq
"""

# The rest of a window too large for one page: sorted once by a cursor of the server's, then fetched.
_CONTINUE: Final = f"""
WITH o AS (
    SELECT * FROM (
        SELECT * FROM outbox.outbox WHERE xid >= %(xmax)s::text::xid8 AND xid < %(xmax_b)s::text::xid8
        UNION ALL
        SELECT * FROM outbox.outbox WHERE xid = ANY (%(in_progress)s::text[]::xid8[])
    ) r WHERE seq > %(last)s AND pg_visible_in_snapshot(xid, %(b)s::pg_snapshot) ORDER BY seq
)
SELECT {COLUMNS} FROM o LEFT JOIN outbox.event e USING (position) WHERE {STANDS} ORDER BY o.seq
"""


@dataclass(frozen=True, slots=True)
class Page:
    """Rows to publish, in order, and the cursor once they are published."""

    rows: Sequence[OutboxRow]
    cursor: Cursor
    settle: bool = False
    """Whether the cursor is to be written down even if there are no rows."""


class PollEngine:
    """Reads pages on a connection of its own (autocommit, :data:`PLANNING` set). Used by one thread."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        read_as_sent(connection)
        self._connection = connection
        self._prefix = prefix
        self._sleep = Sleep(connection)
        self._rest: psycopg.ServerCursor[OutboxRow] | None = None

    def read(self, cursor: Cursor, limit: int) -> Page:
        """The next page after ``cursor``, at most ``limit`` rows; no rows if nothing is new.

        What the cdc engine has published of a large transaction is not published again: its rest comes first.
        """
        cursor = cursor.as_window
        if cursor.open:
            page = self.window(cursor, limit)
            if page.rows:
                return page
            cursor = page.cursor  # pages that were full to the row ended the window: it had nothing left
        return self._begin(cursor, limit)

    def window(self, cursor: Cursor, limit: int) -> Page:
        """The next page of the window that ``cursor`` has open, and of nothing behind it; no rows if none is left."""
        if self._rest is None:
            self._rest = self._open_rest(cursor)
        rows = self._rest.fetchmany(limit)
        if len(rows) == limit:
            return Page(rows, replace(cursor, last=rows[-1].seq))
        self.close()
        return Page(rows, _shut(cursor, cursor.b))

    def written(self, cursor: Cursor) -> None:
        """Nothing in PostgreSQL waits for it."""

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """Sleep until a producer wakes it, or pause if one is just writing."""
        self._sleep.wait(stop, timeout_s)

    def close(self) -> None:
        """Give up the window being read, if any; its cursor says where to go on."""
        rest, self._rest = self._rest, None
        if rest is not None and not self._connection.closed:
            self._connection.execute("ROLLBACK")

    def _begin(self, cursor: Cursor, limit: int) -> Page:
        a = cursor.b
        parameters = {"xmax": str(a.xmax), "in_progress": a.in_progress, "limit": limit}
        parameters |= {"prefix": self._prefix, "unlock": self._sleep.unlock()}
        found = self._connection.execute(_BEGIN, parameters, prepare=True, binary=True).fetchall()
        b = Snapshot(found[0][0])
        rows = [outbox_row(r[1:]) for r in found if r[1] is not None]
        if rows:
            self._sleep.end()
        after = _open(cursor, a, b, rows[-1].seq) if len(rows) == limit else _shut(cursor, b)
        page = Page(standing(rows), after)
        return self.read(after, limit) if after.open and not page.rows else page

    def _open_rest(self, cursor: Cursor) -> psycopg.ServerCursor[OutboxRow]:
        self._connection.execute("BEGIN")
        rest = psycopg.ServerCursor(self._connection, "outbox_window", row_factory=outbox_rows)
        parameters = {
            "xmax": str(cursor.a.xmax),
            "xmax_b": str(cursor.b.xmax),
            "in_progress": cursor.a.in_progress,
            "b": cursor.b.text,
            "last": cursor.last,
            "prefix": self._prefix,
        }
        return rest.execute(_CONTINUE, parameters, binary=True)


def _open(cursor: Cursor, a: Snapshot, b: Snapshot, last: int) -> Cursor:
    return replace(cursor, a=a, b=b, last=last, part=0)


def _shut(cursor: Cursor, b: Snapshot) -> Cursor:
    """The cursor behind a whole window. Where a slot stood it stands: what is visible in ``b`` it passes by."""
    return replace(cursor, a=b, b=b, last=0, part=0)
