"""Reading the log: by stream, by category or whole, from a version or position, in pages.

Every function is a generator over pages found by key, so memory stays flat however long the log is, and no
transaction stays open between pages (but for :func:`read_below`). Positions across streams are not in the
order of commit: a reader that must miss nothing while others write follows the broker, not the end of the log.

The connection's row factory does not matter. Rows of a type or schema the registry does not know raise
:class:`~outbox.errors.UnknownEventType`; corrupt ones :class:`~outbox.errors.InvalidEvent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import tuple_row

from outbox.codec import Registry
from outbox.database import Connection
from outbox.event import Event, Resets, time_of
from outbox.log.as_sent import json_of, read_as_sent, text_of
from outbox.log.statement import VERSION_MAX

PAGE: Final = 1_000
"""Events fetched at a time."""

Row = tuple[Any, ...]

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
    connection: Connection,
    stream: str,
    registry: Registry,
    *,
    after: int = 0,
    page: int = PAGE,
    resets: Resets | None = None,
) -> Iterator[Event]:
    """The events of one stream with a version above ``after``, in order. ``resets``: see :func:`without_void`."""

    def rows() -> Iterator[Row]:
        last = after
        while found := _fetch(connection, _STREAM, stream=stream, after=last, page=page):
            yield from found
            last = found[-1][1]

    return (event_of(row, registry) for row in without_void(rows(), resets))


def categories(connection: Connection) -> list[str]:
    """The categories that the log has events of, in order."""
    return [text_of(category) for (category,) in connection.cursor(row_factory=tuple_row).execute(_CATEGORIES)]


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
    resets: Resets | None = None,
) -> Iterator[Event]:
    """Every event of the categories (None: all), stream by stream in byte order, versions in order.

    Starts after the stream named: a rebuild that was stopped goes on from the last stream it finished. ``resets``: see
    :func:`without_void`.
    """

    def rows() -> Iterator[Row]:
        ranges = [_EVERYTHING] if categories is None else [_range(c) for c in sorted(set(categories))]
        for first, below in ranges:
            stream, version = max((first, 0), (after_stream, VERSION_MAX))
            while found := _fetch(connection, _BY_STREAM, stream=stream, version=version, below=below, page=page):
                yield from found
                stream, version = found[-1][0], found[-1][1]

    return (event_of(row, registry) for row in without_void(rows(), resets))


def read_below(
    connection: Connection, below: Mapping[str, int], registry: Registry, *, resets: Resets | None = None
) -> Iterator[Event]:
    """For each stream named, its events with a version below the one given; stream by stream, in order. ``resets``: see
    :func:`without_void`.

    A cursor of the server's holds a transaction open until the last event is taken or the generator closed.
    """
    parameters = {"streams": list(below), "below": list(below.values())}
    with connection.transaction(), psycopg.ServerCursor(connection, "outbox_below", row_factory=tuple_row) as cursor:
        cursor.itersize = PAGE
        read_as_sent(cursor)
        for row in without_void(cursor.execute(_PARTS, parameters, binary=True), resets):
            yield event_of(row, registry)


def without_void(rows: Iterable[Row], resets: Resets | None, most: int = PAGE) -> Iterator[Row]:
    """Rows of :data:`COLUMNS`, stream by stream, without those that a later event of their stream makes void.

    They are not even decoded. With more than ``most`` events before such a one, only the last of them are left out:
    memory stays flat. So whoever reads on must begin anew at each such event.
    """
    if resets is None:
        yield from rows
        return
    kept: list[Row] = []
    for row in rows:
        if kept:
            if row[0] != kept[0][0] or len(kept) == most:
                yield from kept
                kept.clear()
            elif resets(row[0], row[1], row[2]):
                kept.clear()
        kept.append(row)
    yield from kept


def version_of(connection: Connection, stream: str) -> int:
    """The stream's version now; 0 if it does not exist."""
    rows = _fetch(connection, _VERSION, stream=stream)
    return int(rows[0][0])


def event_of(row: Row, registry: Registry) -> Event:
    """Decode one row of :data:`COLUMNS`, read as it was sent."""
    stream, version, kind, data, id_, position, at_us, meta = row
    return Event(stream, version, kind, registry.decode(kind, data), id_, position, time_of(at_us), json_of(meta))


def _fetch(connection: Connection, query: LiteralString, **parameters: Any) -> list[Row]:
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    read_as_sent(cursor)
    return cursor.execute(query, parameters, binary=True).fetchall()


def _range(category: str) -> tuple[str, str]:
    """Bounds of the category's streams: ``c`` and ``c-...`` sort before ``c.``, and nothing else lies between.

    (A category holds letters, digits, ``.`` and ``_`` only, all of which sort after ``-``.)
    """
    return category, f"{category}."
