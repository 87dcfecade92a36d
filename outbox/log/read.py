"""Reading the log: by stream, by category or whole, from a version or position, in pages.

Every function is a generator over pages found by key, so memory stays flat however long the log is, and no
transaction stays open between pages (but for :func:`read_below`). Positions across streams are not in the
order of commit: a reader that must miss nothing while others write follows the broker, not the end of the log.

The connection's row factory does not matter. Rows of a type or schema the registry does not know raise
:class:`~outbox.errors.UnknownEventType`; corrupt ones :class:`~outbox.errors.InvalidEvent`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import tuple_row

from outbox.codec import Registry
from outbox.database import Connection
from outbox.event import Event
from outbox.log.statement import VERSION_MAX

PAGE: Final = 1_000
"""Events fetched at a time."""

COLUMNS: Final = "stream, version, type, data, id, position, at, meta"

_STREAM: Final = (
    f"SELECT {COLUMNS} FROM outbox.event WHERE stream = %(stream)s AND version > %(after)s"
    " ORDER BY version LIMIT %(page)s"
)
_CATEGORY: Final = (
    f"SELECT {COLUMNS} FROM outbox.event WHERE split_part(stream, '-', 1) = %(category)s AND position > %(after)s"
    " ORDER BY position LIMIT %(page)s"
)
_ALL: Final = f"SELECT {COLUMNS} FROM outbox.event WHERE position > %(after)s ORDER BY position LIMIT %(page)s"
_BY_STREAM: Final = (
    f"SELECT {COLUMNS} FROM outbox.event WHERE (stream, version) > (%(stream)s, %(version)s)"
    " AND stream < %(below)s ORDER BY stream, version LIMIT %(page)s"
)
_PARTS: Final = (
    f"SELECT {COLUMNS} FROM outbox.event e JOIN unnest(%(streams)s::text[], %(below)s::bigint[]) AS want (s, below)"
    " ON e.stream = want.s AND e.version < want.below ORDER BY e.stream, e.version"
)
# From one category to the next in the index on it: as many steps as there are categories.
_CATEGORIES: Final = """
WITH RECURSIVE c AS (
    SELECT (SELECT min(split_part(stream, '-', 1)) FROM outbox.event) AS category
    UNION ALL
    SELECT (SELECT min(split_part(stream, '-', 1)) FROM outbox.event WHERE split_part(stream, '-', 1) > c.category)
    FROM c WHERE c.category IS NOT NULL
)
SELECT category FROM c WHERE category IS NOT NULL
"""
_VERSION: Final = "SELECT coalesce(max(version), 0) FROM outbox.event WHERE stream = %(stream)s"


_EVERYTHING: Final = ("", "\U0010ffff")
"""Bounds of all streams' names, in byte order: no name holds a character that cannot be printed."""


def read_stream(
    connection: Connection, stream: str, registry: Registry, *, after: int = 0, page: int = PAGE
) -> Iterator[Event]:
    """The events of one stream with a version above ``after``, in order."""
    while rows := _fetch(connection, _STREAM, stream=stream, after=after, page=page):
        yield from (event_of(row, registry) for row in rows)
        after = rows[-1][1]


def categories(connection: Connection) -> list[str]:
    """The categories that the log has events of, in order."""
    return [category for (category,) in connection.cursor(row_factory=tuple_row).execute(_CATEGORIES)]


def read_category(
    connection: Connection, category: str, registry: Registry, *, after: int = 0, page: int = PAGE
) -> Iterator[Event]:
    """The events of one category with a position above ``after``, by position."""
    while rows := _fetch(connection, _CATEGORY, category=category, after=after, page=page):
        yield from (event_of(row, registry) for row in rows)
        after = rows[-1][5]


def read_all(connection: Connection, registry: Registry, *, after: int = 0, page: int = PAGE) -> Iterator[Event]:
    """Every event with a position above ``after``, by position."""
    while rows := _fetch(connection, _ALL, after=after, page=page):
        yield from (event_of(row, registry) for row in rows)
        after = rows[-1][5]


def read_by_stream(
    connection: Connection,
    registry: Registry,
    *,
    categories: Sequence[str] | None = None,
    after_stream: str = "",
    page: int = PAGE,
) -> Iterator[Event]:
    """Every event of the categories (None: all), stream by stream in byte order, versions in order.

    Starts after the stream named: a rebuild that was stopped goes on from the last stream it finished.
    """
    ranges = [_EVERYTHING] if categories is None else [_range(c) for c in sorted(set(categories))]
    for first, below in ranges:
        stream, version = max((first, 0), (after_stream, VERSION_MAX))
        while rows := _fetch(connection, _BY_STREAM, stream=stream, version=version, below=below, page=page):
            yield from (event_of(row, registry) for row in rows)
            stream, version = rows[-1][0], rows[-1][1]


def read_below(connection: Connection, below: Mapping[str, int], registry: Registry) -> Iterator[Event]:
    """For each stream named, its events with a version below the one given; stream by stream, in order.

    A cursor of the server's holds a transaction open until the last event is taken or the generator closed.
    """
    parameters = {"streams": list(below), "below": list(below.values())}
    with connection.transaction(), psycopg.ServerCursor(connection, "outbox_below", row_factory=tuple_row) as cursor:
        cursor.itersize = PAGE
        for row in cursor.execute(_PARTS, parameters):
            yield event_of(row, registry)


def version_of(connection: Connection, stream: str) -> int:
    """The stream's version now; 0 if it does not exist."""
    rows = _fetch(connection, _VERSION, stream=stream)
    return int(rows[0][0])


def event_of(row: Sequence[Any], registry: Registry) -> Event:
    """Decode one row of :data:`COLUMNS`."""
    stream, version, kind, data, id_, position, at, meta = row
    return Event(stream, version, kind, registry.decode(kind, bytes(data)), id_, position, at, meta)


def _fetch(connection: Connection, query: LiteralString, **parameters: Any) -> list[tuple[Any, ...]]:
    return psycopg.Cursor(connection, row_factory=tuple_row).execute(query, parameters).fetchall()


def _range(category: str) -> tuple[str, str]:
    """Bounds of the category's streams: ``c`` and ``c-...`` sort before ``c.``, and nothing else lies between.

    (A category holds letters, digits, ``.`` and ``_`` only, all of which sort after ``-``.)
    """
    return category, f"{category}."
