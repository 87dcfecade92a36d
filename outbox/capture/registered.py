"""What is captured, as the log's own database has it: the captures, their tables, and how far each has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, LiteralString

import orjson

from outbox.capture.table import Described, Table
from outbox.database import Connection
from outbox.errors import Fenced, SettingsError
from outbox.relay.replication import lsn_number, lsn_text

State = Literal["new", "changed", "streaming"]

_REGISTER: Final = """
INSERT INTO outbox.capture AS c (name, source) VALUES (%(name)s, %(source)s)
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING source
"""
_ADD: Final = """
INSERT INTO outbox.captured AS t (category, capture, relation, name, key)
VALUES (%(category)s, %(capture)s, %(relation)s::oid, %(name)s, %(key)s)
ON CONFLICT (category) DO UPDATE SET name = t.name RETURNING capture, relation::bigint, name, key
"""
_TAKEN: Final = """
SELECT type FROM outbox.event
WHERE stream >= %(category)s AND stream < %(category)s || '.'
  AND type NOT IN ('row.inserted', 'row.updated', 'row.deleted', 'table.described') LIMIT 1
"""
_BEGIN: Final = "UPDATE outbox.capture SET epoch = %s WHERE name = %s AND epoch < %s RETURNING source, slot, lsn::text"
_SOURCE: Final = "SELECT source FROM outbox.capture WHERE name = %s"
_TABLES: Final = """
SELECT category, relation::bigint, name, key, state, columns, shape, coalesce(print, '') FROM outbox.captured
WHERE capture = %s ORDER BY category
"""
_MOVE: Final = """
UPDATE outbox.capture SET lsn = %(lsn)s::pg_lsn, at = clock_timestamp() WHERE name = %(name)s AND epoch = %(epoch)s
"""
_SLOT: Final = """
UPDATE outbox.capture SET slot = %(slot)s, lsn = %(lsn)s::pg_lsn, at = clock_timestamp()
WHERE name = %(name)s AND epoch = %(epoch)s
"""
_STATE: Final = """
UPDATE outbox.captured SET state = %s, at = clock_timestamp() WHERE capture = %s AND category = ANY (%s)
"""
_SETTLED: Final = """
UPDATE outbox.captured SET state = 'streaming', print = %s, at = clock_timestamp() WHERE capture = %s AND category = %s
"""
_DESCRIBE: Final = """
UPDATE outbox.captured SET columns = %s::jsonb, shape = %s, at = clock_timestamp() WHERE category = %s
"""
_REMOVE: Final = "DELETE FROM outbox.captured WHERE capture = %s AND category = %s RETURNING name"
_REMOVE_EMPTY: Final = """
DELETE FROM outbox.capture c WHERE name = %s AND NOT EXISTS (SELECT FROM outbox.captured t WHERE t.capture = c.name)
"""
# Whoever still has the lease in its hands is fenced, and whoever wants it waits until this is over.
_FENCE: Final = """
UPDATE outbox.lease SET epoch = epoch + 1, expires_at = '-infinity'
WHERE name = %s AND expires_at < clock_timestamp()
"""
_HOLDER: Final = "SELECT holder FROM outbox.lease WHERE name = %s AND expires_at > '-infinity'"
_FORGET: Final = "DELETE FROM outbox.capture WHERE name = %s RETURNING slot"
_LISTED: Final = """
SELECT t.capture, t.category, t.name, t.key, t.state, t.shape, c.slot, c.lsn::text, c.at,
       (SELECT l.holder FROM outbox.lease l WHERE l.name = 'capture:' || c.name AND l.expires_at > clock_timestamp())
FROM outbox.captured t JOIN outbox.capture c ON c.name = t.capture ORDER BY t.capture, t.category
"""


@dataclass(frozen=True, slots=True)
class Captured:
    """One table of a capture. ``state``: ``new`` (its rows are not in the log yet, or not all), ``changed`` (they are,
    but must be looked at again), ``streaming``."""

    category: str
    relation: int
    name: str
    key: tuple[str, ...]
    state: State
    columns: Described
    shape: int
    print: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a capture stands. ``lsn``: every transaction of the source that committed before it is in the log."""

    name: str
    epoch: int
    source: str
    slot: str | None
    lsn: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A capture that was given up. ``slot``: what it read last, which its source may still have."""

    categories: tuple[str, ...]
    slot: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A captured table for people. ``leader`` is None if no process captures it now."""

    capture: str
    category: str
    table: str
    key: tuple[str, ...]
    state: State
    shape: int
    slot: str | None
    lsn: str | None
    at: datetime
    leader: str | None


def register(connection: Connection, name: str, source: str, tables: Iterable[Table]) -> None:
    """Add tables to a capture, which begins with the first. Those it has already are left as they are.

    Raises :class:`~outbox.errors.SettingsError`, and then adds nothing, if the capture is of another database, or a
    table's category is another table's or in use for events of other kinds.
    """
    with connection.transaction():
        row = connection.execute(_REGISTER, {"name": name, "source": source}).fetchone()
        if row is not None and row[0] != source:
            raise other_source(name)
        for table in tables:
            _add(connection, name, table)


def _add(connection: Connection, name: str, table: Table) -> None:
    given = {"category": table.category, "capture": name, "relation": table.relation, "key": list(table.key)}
    row = connection.execute(_ADD, {**given, "name": table.full_name}).fetchone()
    if row is None:
        return
    capture, relation, known_as, key = row
    if (capture, relation) != (name, table.relation):
        raise SettingsError(
            f"table {table.full_name} cannot be captured: the category {table.category!r} belongs to {known_as} of"
            f" capture {capture!r}; if that table is gone: outbox capture --name {capture} --drop {table.category}"
        )
    if tuple(key) != table.key:
        raise key_changed(table.full_name, tuple(key), table.key)
    other = connection.execute(_TAKEN, {"category": table.category}).fetchone()
    if other is not None:
        raise SettingsError(
            f"table {table.full_name} cannot be captured: the log has {other[0]} events in category"
            f" {table.category!r}, and two writers cannot share streams"
        )


def key_changed(name: str, was: Sequence[str], now: Sequence[str]) -> SettingsError:
    """The streams are named after the key, so a table with another one is another capture."""
    return SettingsError(
        f"the key of table {name} was ({', '.join(was)}) when it was first captured and is ({', '.join(now)}) now:"
        " give it its key back, or drop the capture (outbox capture --drop) and capture it under another name"
    )


def other_source(name: str) -> SettingsError:
    """The source is not the database that the capture is of."""
    return SettingsError(
        f"capture {name!r} is of another database: give the right --source, or --name for a capture of its own; if that"
        f" database was moved or is gone: outbox capture --name {name} --forget, then name its tables again"
    )


def begin(connection: Connection, name: str, epoch: int) -> Standing | None:
    """Take over a capture; None if there is none of that name, or a newer epoch has it."""
    row = connection.execute(_BEGIN, [epoch, name, epoch]).fetchone()
    if row is None:
        return None
    source, slot, lsn = row
    return Standing(name, epoch, source, slot, lsn_number(lsn) if lsn else 0)


def source_of(connection: Connection, name: str) -> str | None:
    """The database that a capture is of; None if there is no such capture."""
    row = connection.execute(_SOURCE, [name]).fetchone()
    return row[0] if row else None


def tables(connection: Connection, name: str) -> list[Captured]:
    """The capture's tables, by category."""
    rows = connection.execute(_TABLES, [name]).fetchall()
    return [
        Captured(c, relation, full, tuple(key), state, tuple((n, t) for n, t in columns or ()), shape, print_)
        for c, relation, full, key, state, columns, shape, print_ in rows
    ]


def move(connection: Connection, standing: Standing, lsn: int) -> None:
    """Write down that everything before ``lsn`` is in the log. Raises :class:`~outbox.errors.Fenced`."""
    _guarded(connection, _MOVE, standing, lsn=lsn_text(lsn))


def use_slot(connection: Connection, standing: Standing, slot: str, lsn: int) -> None:
    """From now on the capture reads this slot. Raises :class:`~outbox.errors.Fenced`."""
    _guarded(connection, _SLOT, standing, slot=slot, lsn=lsn_text(lsn))


def set_state(connection: Connection, name: str, categories: Iterable[str], state: State) -> int:
    """Set the state of some tables; returns how many there were."""
    return connection.execute(_STATE, [state, name, list(categories)]).rowcount


def settled(connection: Connection, name: str, category: str, print_: str) -> None:
    """All rows of the table are in the log as of the capture's position."""
    connection.execute(_SETTLED, [print_, name, category])


def describe(connection: Connection, category: str, columns: Described, shape: int) -> None:
    """Remember what was described last."""
    connection.execute(_DESCRIBE, [orjson.dumps(columns).decode(), shape, category])


def remove(connection: Connection, name: str, category: str) -> bool:
    """Forget a table, and the capture with its last one. Its events stay. False if it is not captured."""
    with connection.transaction():
        found = connection.execute(_REMOVE, [name, category]).rowcount
        connection.execute(_REMOVE_EMPTY, [name])
    return found > 0


def forget(connection: Connection, name: str, lease: str) -> Forgotten:
    """Forget a capture and all its tables. Their events stay, and so does what the source has of the capture.

    Raises :class:`~outbox.errors.SettingsError`, and changes nothing, if a process leads it or there is none.
    """
    with connection.transaction():
        connection.execute(_FENCE, [lease])
        holder = connection.execute(_HOLDER, [lease]).fetchone()
        if holder is not None:
            raise SettingsError(f"capture {name!r} is led by {holder[0]}: stop it first")
        categories = tuple(captured.category for captured in tables(connection, name))
        row = connection.execute(_FORGET, [name]).fetchone()
    if row is None:
        raise SettingsError(f"there is no capture {name!r}: outbox capture --list")
    return Forgotten(categories, row[0])


def listed(connection: Connection) -> list[Listed]:
    """Every captured table, for people."""
    rows = connection.execute(_LISTED).fetchall()
    return [Listed(c, category, name, tuple(key), *rest) for c, category, name, key, *rest in rows]


def _guarded(connection: Connection, query: LiteralString, standing: Standing, **values: Any) -> None:
    given = {"name": standing.name, "epoch": standing.epoch, **values}
    if connection.execute(query, given).rowcount != 1:
        raise Fenced(f"capture {standing.name!r}: another process has taken over from epoch {standing.epoch}")
