"""Rows and values in PostgreSQL: one table per generation, one view that serves.

A generation is the table ``<projection>:<generation>`` (key, stream, version, deleted, kind, body, slice, mark); the
serving one is read through the view ``<projection>``, which hides tombstones and never changes its
columns. ``body`` is ``json``, not ``jsonb``: jsonb turns ``-0.0`` into ``0``, forgets ``1.0`` and refuses
``\\u0000``, and a record must come back as it went in. ``body ->> 'name'`` works, and may be indexed.

Settings: ``dsn`` (libpq's form), ``schema`` (default ``outbox_rows``), ``timeout_s`` (of
connecting and of a statement, default 30).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Literal, LiteralString, NamedTuple

import orjson
import psycopg
from psycopg import errors, sql
from pydantic import BaseModel, ConfigDict

from outbox.database import halting
from outbox.errors import RecordsRefused, SettingsError, StoreError, StoreUnavailable
from projectors.marks import Sum, mark_of
from projectors.record import Change, Row, Stored, Value, digest, newest, storable
from projectors.sinks.given import Seconds, checked, only

SCHEMA: Final = "outbox_rows"
TIMEOUT_S: Final = 30.0
KEEPALIVE: Final[dict[str, Any]] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""A server that vanished is missed after 25 s, where libpq's default is two hours."""
PAGE_ROWS: Final = 1_000
"""Rows read at a time by ``scan``."""
STATEMENT_ROWS: Final = 5_000
STATEMENT_BYTES: Final = 16 * 1024 * 1024
"""A bigger batch goes in several statements: both ends hold a statement in memory whole."""
NAME_BYTES: Final = 63
"""PostgreSQL cuts longer identifiers silently, and two generations could then be one table."""

_Refusals = dict[str, str]
_REFUSED = (
    psycopg.DataError,
    psycopg.IntegrityError,
    errors.ProgramLimitExceeded,
    errors.StatementTooComplex,
    UnicodeEncodeError,
)
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    errors.ReadOnlySqlTransaction,
    errors.IdleInTransactionSessionTimeout,
)

_LOCK: Final[LiteralString] = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_CREATE_SCHEMA: Final[LiteralString] = "CREATE SCHEMA IF NOT EXISTS {schema}"
_CREATE_TABLE: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS {table} (
    key text COLLATE "C" PRIMARY KEY,
    stream text NOT NULL,
    version bigint NOT NULL,
    deleted boolean NOT NULL,
    kind text NOT NULL,
    body json,
    slice smallint,
    mark bigint
)"""
# Tables made before there were marks; their rows get them as they are written.
_ADD_MARKS: Final[LiteralString] = """
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS slice smallint, ADD COLUMN IF NOT EXISTS mark bigint"""
_MARKED: Final[LiteralString] = """
SELECT count(*) = 2 FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname IN ('slice', 'mark')"""
_CREATE_VIEW: Final[LiteralString] = """
CREATE OR REPLACE VIEW {view} AS SELECT key, stream, version, kind, body FROM {table} WHERE NOT deleted"""
_DROP_TABLE: Final[LiteralString] = "DROP TABLE IF EXISTS {table} CASCADE"
# Binary: psycopg writes an array thirty times as fast as in text, where every character may need escaping.
_PUT: Final[LiteralString] = """
INSERT INTO {table} AS t (key, stream, version, deleted, kind, body, slice, mark)
SELECT key, stream, version, deleted, kind, body::json, slice, mark
FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::boolean[], %b::text[], %b::text[], %b::smallint[], %b::bigint[])
    AS new (key, stream, version, deleted, kind, body, slice, mark)
ON CONFLICT (key) DO UPDATE
SET stream = excluded.stream, version = excluded.version, deleted = excluded.deleted,
    kind = excluded.kind, body = excluded.body, slice = excluded.slice, mark = excluded.mark
"""
_UPSERT: Final[LiteralString] = _PUT + "WHERE t.version < excluded.version"
_REPAIR: Final[LiteralString] = _PUT + "WHERE t.version <= excluded.version"
_FIRST_PAGE: Final[LiteralString] = """
SELECT key, stream, version, kind, body::text FROM {table} WHERE NOT deleted ORDER BY key LIMIT %s"""
_NEXT_PAGE: Final[LiteralString] = """
SELECT key, stream, version, kind, body::text FROM {table}
WHERE NOT deleted AND key > %s ORDER BY key LIMIT %s"""
_BY_KEYS: Final[LiteralString] = """
SELECT key, stream, version, kind, body::text FROM {table} WHERE NOT deleted AND key = ANY(%s)"""


_SUMS: Final[LiteralString] = """
SELECT s, count(*), sum(CASE WHEN s >= 0 THEN mark ELSE 0 END) FROM (
    SELECT CASE WHEN mark IS NULL THEN -1 ELSE coalesce(slice, -1) END AS s, mark FROM {table} WHERE NOT deleted
) AS live GROUP BY s"""
_FIRST_OF_SLICES: Final[LiteralString] = """
SELECT key, stream, version, kind, body::text FROM {table}
WHERE NOT deleted AND slice = ANY(%s) ORDER BY key LIMIT %s"""
_NEXT_OF_SLICES: Final[LiteralString] = """
SELECT key, stream, version, kind, body::text FROM {table}
WHERE NOT deleted AND slice = ANY(%s) AND key > %s ORDER BY key LIMIT %s"""


class _Line(NamedTuple):
    """One row of the upsert, its fields in the statement's order."""

    key: str
    stream: str
    version: int
    deleted: bool
    kind: str
    body: str | None
    slice: int | None
    mark: int | None


class PostgresSink:
    """A :class:`~projectors.sinks.protocol.Sink` of Row and Value, on a connection of its own.

    The connection is opened at the first call and again after it was lost.
    """

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, projection: str, dsn: str, schema: str = SCHEMA, timeout_s: float = TIMEOUT_S) -> None:
        self._projection = projection
        self._dsn = dsn
        self._schema = schema
        self._timeout_s = timeout_s
        self._connection: psycopg.Connection[Any] | None = None

    def prepare(self, generation: str) -> None:
        self._define(generation, _CREATE_SCHEMA, _CREATE_TABLE)
        name = self._table(generation).as_string(None)
        if self._rows(sql.SQL(_MARKED).format(), (name,))[0][0] is not True:
            self._define(generation, _ADD_MARKS)  # only then: it locks out readers, however shortly

    def switch(self, generation: str) -> None:
        self._define(generation, _CREATE_VIEW)

    def drop(self, generation: str) -> None:
        """Drops the table, and with it the view if it serves this generation."""
        if self._exists(generation):
            self._define(generation, _DROP_TABLE)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        refused: _Refusals = {}
        with self._connected() as connection:
            for text, some in (
                (_UPSERT, [c for c in changes if not c.repair]),
                (_REPAIR, [c for c in changes if c.repair]),
            ):
                statement = self._statement(text, generation)
                for lines in _statements(_lines(some, refused)):
                    _write(connection, statement, lines, refused)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        pages = self._all_pages(generation) if keys is None else self._pages_of(generation, keys)
        for page in pages:
            yield from (_stored(*row) for row in page)

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up by PostgreSQL: at most :data:`~projectors.marks.SLICES` rows are read."""
        return {
            slice_: Sum(count, int(total))
            for slice_, count, total in self._rows(self._statement(_SUMS, generation), ())
        }

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        wanted = sorted(slices)
        page = self._rows(self._statement(_FIRST_OF_SLICES, generation), (wanted, PAGE_ROWS))
        while page:
            yield from (_stored(*row) for row in page)
            page = self._rows(self._statement(_NEXT_OF_SLICES, generation), (wanted, page[-1][0], PAGE_ROWS))

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _all_pages(self, generation: str) -> Iterator[list[tuple[Any, ...]]]:
        # Pages by key instead of a cursor: no transaction stays open while the caller thinks.
        page = self._rows(self._statement(_FIRST_PAGE, generation), (PAGE_ROWS,))
        while page:
            yield page
            last = page[-1][0]
            page = self._rows(self._statement(_NEXT_PAGE, generation), (last, PAGE_ROWS))

    def _pages_of(self, generation: str, keys: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
        possible = [key for key in dict.fromkeys(keys) if _storable(key)]
        statement = self._statement(_BY_KEYS, generation)
        for start in range(0, len(possible), PAGE_ROWS):
            yield self._rows(statement, (possible[start : start + PAGE_ROWS],))

    def _rows(self, statement: sql.Composed, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(statement, parameters).fetchall()

    def _exists(self, generation: str) -> bool:
        name = self._table(generation).as_string(None)
        return self._rows(sql.SQL("SELECT to_regclass(%s) IS NOT NULL").format(), (name,))[0][0] is True

    def _define(self, generation: str, *templates: LiteralString) -> None:
        """Run definitions in one transaction, one process at a time: PostgreSQL's IF NOT EXISTS races."""
        with self._connected() as connection, connection.transaction():
            connection.execute(_LOCK, (f"{self._schema}.{self._projection}",))
            for template in templates:
                connection.execute(self._statement(template, generation))

    def _statement(self, template: LiteralString, generation: str) -> sql.Composed:
        return sql.SQL(template).format(
            schema=sql.Identifier(self._schema),
            table=self._table(generation),
            view=sql.Identifier(self._schema, self._projection),
        )

    def _table(self, generation: str) -> sql.Identifier:
        name = f"{self._projection}:{generation}"
        if len(name.encode()) > NAME_BYTES:
            raise SettingsError(f"postgres: table name {name!r} is longer than {NAME_BYTES} bytes, shorten projection")
        return sql.Identifier(self._schema, name)

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            yield self._open()
        except _PASSING as error:
            self.close()
            raise StoreUnavailable(f"postgres: {_line(error)}") from error
        except psycopg.Error as error:
            raise StoreError(f"postgres: {_line(error)}") from error

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            timeout_ms = round(self._timeout_s * 1000)
            bounds = KEEPALIVE | {"connect_timeout": math.ceil(self._timeout_s), "tcp_user_timeout": timeout_ms}
            connection = psycopg.connect(self._dsn, autocommit=True, **bounds)
            self._connection = connection
            for name, value in (halting() | {"statement_timeout": str(timeout_ms)}).items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        return self._connection


class Waiting(BaseModel):
    """How long the server may take."""

    model_config = ConfigDict(frozen=True)

    timeout_s: Seconds


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[PostgresSink]:
    """A sink for one projection. Raises :class:`~outbox.errors.SettingsError` if ``dsn`` is missing."""
    only("postgres", settings, "dsn", "schema", "timeout_s")
    if not settings.get("dsn"):
        raise SettingsError("postgres: the setting dsn is missing")
    # The separator keeps "a" + "b:c" and "a:b" + "c" from being one table. A % would be psycopg's, within a name too.
    if not projection or ":" in projection or "%" in projection or len(projection.encode()) > NAME_BYTES:
        raise SettingsError(f"postgres: projection {projection!r} cannot name a view")
    schema = str(settings.get("schema") or SCHEMA)
    if "%" in schema:
        raise SettingsError(f"postgres: setting 'schema' is {schema!r}: no name with a %")
    waiting = checked("postgres", Waiting, {"timeout_s": settings.get("timeout_s") or TIMEOUT_S})
    sink = PostgresSink(projection, str(settings["dsn"]), schema, waiting.timeout_s)
    try:
        yield sink
    finally:
        sink.close()


def _write(
    connection: psycopg.Connection[Any], upsert: sql.Composed, lines: Sequence[_Line], refused: _Refusals
) -> None:
    """Write the lines in one statement; if PostgreSQL refuses it, halve it until the culprits stand alone."""
    try:
        connection.execute(upsert, [list(column) for column in zip(*lines, strict=True)])
    except _REFUSED as error:
        if len(lines) == 1:
            refused[lines[0].key] = _line(error)
            return
        half = len(lines) // 2
        _write(connection, upsert, lines[:half], refused)
        _write(connection, upsert, lines[half:], refused)


def _lines(changes: Sequence[Change], refused: _Refusals) -> list[_Line]:
    """The greatest version of each key, by key: rows are locked in one order, so batches cannot deadlock."""
    winners = newest(changes)
    lines = []
    for key in sorted(winners):
        try:
            lines.append(_as_line(winners[key]))
        except (TypeError, UnicodeEncodeError) as error:  # orjson raises a subclass for what JSON cannot say
            refused[key] = str(error)
    return lines


def _as_line(change: Change) -> _Line:
    match change.record:
        case None:
            kind, body = "", None
        case Row():
            kind, body = "row", orjson.dumps(dict(change.record.columns)).decode()
        case Value():
            kind, body = "value", orjson.dumps(change.record.value).decode()
        case other:
            raise TypeError(f"postgres takes Row and Value, not {type(other).__name__}")
    mark = mark_of(change)
    marked = (None, None) if mark is None else (mark.slice, mark.mark)
    return _Line(change.key, change.stream, change.version, change.record is None, kind, body, *marked)


def _statements(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """The lines cut where a statement would pass STATEMENT_ROWS or STATEMENT_BYTES."""
    part: list[_Line] = []
    size = 0
    for line in lines:
        length = len(line.body or "") + len(line.key)
        if part and (len(part) == STATEMENT_ROWS or size + length > STATEMENT_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += length
    if part:
        yield part


def _stored(key: str, stream: str, version: int, kind: str, body: str) -> Stored:
    content = orjson.loads(body)
    record = Row(key, content) if kind == "row" else Value(key, content)
    return Stored(key, stream, version, digest(record))


def _storable(key: str) -> bool:
    return "\x00" not in key and storable(key)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
