"""Reading the log: by stream, by category or whole, from a version or position, in pages.

Every function is a generator over pages found by key, so memory stays flat however long the log is, and
no transaction stays open between pages. Positions across streams are not in the order of commit: a reader
that must miss nothing while others write follows the broker, not the end of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from outbox.codec import Registry
from outbox.database import Connection
from outbox.event import Event

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
    " AND (%(categories)s::text[] IS NULL OR split_part(stream, '-', 1) = ANY (%(categories)s::text[]))"
    " ORDER BY stream, version LIMIT %(page)s"
)
_PARTS: Final = (
    f"SELECT {COLUMNS} FROM outbox.event e JOIN unnest(%(streams)s::text[], %(below)s::bigint[]) AS want (s, below)"
    " ON e.stream = want.s AND e.version < want.below ORDER BY e.stream, e.version"
)
_VERSION: Final = "SELECT coalesce(max(version), 0) FROM outbox.event WHERE stream = %s"


def read_stream(
    connection: Connection, stream: str, registry: Registry, *, after: int = 0, page: int = PAGE
) -> Iterator[Event]:
    """The events of one stream with a version above ``after``, in order."""
    while rows := connection.execute(_STREAM, {"stream": stream, "after": after, "page": page}).fetchall():
        yield from (event_of(row, registry) for row in rows)
        after = rows[-1][1]


def read_category(
    connection: Connection, category: str, registry: Registry, *, after: int = 0, page: int = PAGE
) -> Iterator[Event]:
    """The events of one category with a position above ``after``, by position."""
    while rows := connection.execute(_CATEGORY, {"category": category, "after": after, "page": page}).fetchall():
        yield from (event_of(row, registry) for row in rows)
        after = rows[-1][5]


def read_all(connection: Connection, registry: Registry, *, after: int = 0, page: int = PAGE) -> Iterator[Event]:
    """Every event with a position above ``after``, by position."""
    while rows := connection.execute(_ALL, {"after": after, "page": page}).fetchall():
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
    stream, version = after_stream, 2**62
    names = None if categories is None else list(categories)
    while rows := connection.execute(
        _BY_STREAM, {"stream": stream, "version": version, "categories": names, "page": page}
    ).fetchall():
        yield from (event_of(row, registry) for row in rows)
        stream, version = rows[-1][0], rows[-1][1]


def read_below(connection: Connection, below: Mapping[str, int], registry: Registry) -> Iterator[Event]:
    """For each stream named, its events with a version below the one given; stream by stream, in order."""
    parameters = {"streams": list(below), "below": list(below.values())}
    with connection.transaction(), connection.cursor(name="outbox_below") as cursor:
        cursor.itersize = PAGE
        for row in cursor.execute(_PARTS, parameters):
            yield event_of(row, registry)


def version_of(connection: Connection, stream: str) -> int:
    """The stream's version now; 0 if it does not exist."""
    row = connection.execute(_VERSION, [stream]).fetchone()
    return int(row[0]) if row else 0


def event_of(row: Sequence[Any], registry: Registry) -> Event:
    """Decode one row of :data:`COLUMNS`."""
    stream, version, kind, data, id_, position, at, meta = row
    return Event(stream, version, kind, registry.decode(kind, bytes(data)), id_, position, at, meta)
