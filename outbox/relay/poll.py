"""The poll engine: reads the outbox window by window (see :mod:`outbox.relay.cursor`)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import orjson
import psycopg
from psycopg.rows import tuple_row
from psycopg.types.json import set_json_loads

from outbox.broker.protocol import Message
from outbox.database import Connection
from outbox.envelope import event_message, plain_message
from outbox.relay.cursor import Cursor, Snapshot
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

COLUMNS: Final = """
o.seq, o.position, o.topic, o.key, o.headers, o.payload, e.stream, e.version, e.type, e.data, e.id, e.at, e.meta
"""
"""What :func:`outbox_row` reads, of a row ``o`` of the outbox and its event ``e``, if it has one."""

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
SELECT {COLUMNS} FROM o LEFT JOIN outbox.event e USING (position) ORDER BY o.seq
"""


class OutboxRow(NamedTuple):
    """One row of the outbox, and the message it becomes."""

    seq: int
    position: int | None
    message: Message


@dataclass(frozen=True, slots=True)
class Page:
    """Rows to publish, in order, and the cursor once they are published."""

    rows: Sequence[OutboxRow]
    cursor: Cursor
    settle: bool = False
    """Whether the cursor is to be written down even if there are no rows."""


def outbox_row(prefix: str, row: Sequence[Any]) -> OutboxRow:
    """Make one row of :data:`COLUMNS` the message it stands for."""
    seq, position, topic, key, headers, payload, stream, version, type_, data, id_, at, meta = row
    if position is None:
        return OutboxRow(seq, None, plain_message(topic, key, headers, payload))
    return OutboxRow(seq, position, event_message(prefix, stream, version, type_, data, id_, position, at, meta))


class PollEngine:
    """Reads pages on a connection of its own (autocommit, :data:`PLANNING` set). Used by one thread."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        set_json_loads(
            orjson.loads, connection
        )  # every event has a meta, and Python's own parser takes as long as the rest
        self._connection = connection
        self._prefix = prefix
        self._sleep = Sleep(connection)
        self._rest: psycopg.ServerCursor[tuple[Any, ...]] | None = None

    def read(self, cursor: Cursor, limit: int) -> Page:
        """The next page after ``cursor``, at most ``limit`` rows; no rows if nothing is new."""
        if cursor.open:
            page = self._continue(cursor, limit)
            if page.rows:
                return page
            cursor = page.cursor  # pages that were full to the row ended the window: it had nothing left
        return self._begin(cursor, limit)

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
        parameters = {"xmax": str(a.xmax), "in_progress": a.in_progress, "limit": limit, "unlock": self._sleep.unlock()}
        found = self._connection.execute(_BEGIN, parameters, prepare=True, binary=True).fetchall()
        b = Snapshot(found[0][0])
        rows = [outbox_row(self._prefix, r[1:]) for r in found if r[1] is not None]
        if rows:
            self._sleep.end()
        return Page(rows, _open(cursor, a, b, rows[-1].seq) if len(rows) == limit else _shut(cursor, b))

    def _continue(self, cursor: Cursor, limit: int) -> Page:
        if self._rest is None:
            self._rest = self._open_rest(cursor)
        rows = [outbox_row(self._prefix, r) for r in self._rest.fetchmany(limit)]
        if len(rows) == limit:
            return Page(rows, replace(cursor, last=rows[-1].seq))
        self.close()
        return Page(rows, _shut(cursor, cursor.b))

    def _open_rest(self, cursor: Cursor) -> psycopg.ServerCursor[tuple[Any, ...]]:
        self._connection.execute("BEGIN")
        rest = psycopg.ServerCursor(self._connection, "outbox_window", row_factory=tuple_row)
        parameters = {
            "xmax": str(cursor.a.xmax),
            "xmax_b": str(cursor.b.xmax),
            "in_progress": cursor.a.in_progress,
            "b": cursor.b.text,
            "last": cursor.last,
        }
        return rest.execute(_CONTINUE, parameters, binary=True)


def _open(cursor: Cursor, a: Snapshot, b: Snapshot, last: int) -> Cursor:
    return replace(cursor, a=a, b=b, last=last, part=0)


def _shut(cursor: Cursor, b: Snapshot) -> Cursor:
    """The cursor behind a whole window. Where a slot stood it stands: what is visible in ``b`` it passes by."""
    return replace(cursor, a=b, b=b, last=0, part=0)
