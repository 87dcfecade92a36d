"""Appending inside the transaction the caller already has open.

``append`` takes whatever a Python service holds; ``append_async`` the same for asyncio. Neither opens a
connection, begins, commits or rolls back: that stays the caller's. What the caller has set on the connection
(row factory, cursor factory, pipeline mode, prepared statements) neither matters nor changes. On an autocommit
connection an append is a transaction of its own, in one round trip.

=====================================================  ==================
psycopg ``Connection``                                 ``append``
psycopg ``AsyncConnection``                            ``append_async``
SQLAlchemy ``Connection``, ``Session``                 ``append``
SQLAlchemy ``AsyncConnection``, ``AsyncSession``       ``append_async``
Django's ``connection`` (``django.db.connection``)     ``append``
=====================================================  ==================

Isolation: under READ COMMITTED an appender that loses a race sees the winner and gets the answer that is true
then. Under REPEATABLE READ and SERIALIZABLE it cannot see the winner, so PostgreSQL refuses it with a
serialization failure, which is the driver's own error and ends the transaction: run the whole of it again, as
with any other statement at these levels. So do deadlocks, which two transactions that append to the same
streams in opposite order can make.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import tuple_row

from outbox.codec import Registry, default_registry
from outbox.database import first_line
from outbox.errors import DatabaseError
from outbox.event import NewEvent
from outbox.log.array_format import PackedArray, bytea_array, text_array, uuid_array
from outbox.log.as_sent import encoding_of
from outbox.log.statement import (
    APPEND,
    APPEND_ONE,
    Appended,
    Expected,
    Statement,
    Token,
    append_statement,
    read_append,
    send_statement,
)

Execute = Callable[[Any, Statement], Any]
"""Runs a statement on a connection and returns its one row (or a coroutine of it)."""

_NAME: Final = re.compile(r":(\w+)")

_BINARY: Final = frozenset({"types", "ids", "data", "meta", "payload"})
"""Parameters that psycopg sends in PostgreSQL's binary form: arrays are written several times faster than as text."""

_BINARY_OF_ONE: Final = frozenset({"data"})

_NOT_MIGRATED: Final = frozenset({"3F000", "42P01", "42883"})
"""SQLSTATEs of a schema, a table and a function that do not exist."""


def append(
    connection: Any,
    stream: str,
    events: Sequence[NewEvent] | NewEvent,
    *,
    expected: Expected = "any",
    registry: Registry | None = None,
) -> Appended:
    """Append events to a stream in the caller's transaction, in one round trip.

    The same event ids again, with the same expected version, give the positions they already have.
    Raises :class:`~outbox.errors.VersionConflict` or :class:`~outbox.errors.DuplicateEvent` (nothing is
    written and the transaction goes on), :class:`~outbox.errors.InvalidEvent` (before any SQL) and
    :class:`~outbox.errors.DatabaseError` for a connection it cannot use or a database that has not been
    migrated. Whatever else the database refuses is the driver's own error.
    """
    statement = append_statement(stream, expected, events, registry or default_registry())
    return read_append(statement, _run(connection, statement))


async def append_async(
    connection: Any,
    stream: str,
    events: Sequence[NewEvent] | NewEvent,
    *,
    expected: Expected = "any",
    registry: Registry | None = None,
) -> Appended:
    """:func:`append` for asyncio connections."""
    statement = append_statement(stream, expected, events, registry or default_registry())
    return read_append(statement, await _run_async(connection, statement))


def send(
    connection: Any, topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None
) -> Token:
    """Hand a plain message (no event, nothing in the log) to the relay, in the caller's transaction.

    ``topic`` is the whole name: the relay's prefix is for events. Raises as :func:`append` does.
    """
    return Token(int(_run(connection, send_statement(topic, key, payload, headers))[0]))


async def send_async(
    connection: Any, topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None
) -> Token:
    """:func:`send` for asyncio connections."""
    return Token(int((await _run_async(connection, send_statement(topic, key, payload, headers)))[0]))


def _run(connection: Any, statement: Statement) -> Any:
    adapter = _adapter(type(connection), False)
    try:
        return adapter(connection, statement)
    except Exception as error:
        _explain(error)
        raise


async def _run_async(connection: Any, statement: Statement) -> Any:
    adapter = _adapter(type(connection), True)
    try:
        return await adapter(connection, statement)
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """Raise :class:`~outbox.errors.DatabaseError` if the error says that our tables are missing."""
    if _sqlstate(error) in _NOT_MIGRATED:
        raise DatabaseError(
            f"this database has no outbox tables (or old ones): run `outbox migrate` first ({first_line(error)})"
        ) from error


def _sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE, wherever the driver or what wraps it keeps it (``orig``: SQLAlchemy; the cause: Django)."""
    while error is not None:
        found = getattr(error, "sqlstate", None)
        if found:
            return str(found)
        error = getattr(error, "orig", None) or error.__cause__
    return None


# ------------------------------------------------------------------ adapters


def _psycopg(connection: Any, statement: Statement) -> Any:
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    return cursor.execute(*_for_psycopg(cursor, statement)).fetchone()


async def _psycopg_async(connection: Any, statement: Statement) -> Any:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    return await (await cursor.execute(*_for_psycopg(cursor, statement))).fetchone()


def _for_psycopg(cursor: Any, statement: Statement) -> tuple[bytes, Mapping[str, Any]]:
    """The query and its values as psycopg sends them soonest.

    It looks a dumper up for each type of each statement: of one event everything but the data goes as text. The SQL
    is the same object each time, so that its hash, by which psycopg finds what it has prepared, is made once.
    """
    values = statement.values
    if statement.sql is APPEND_ONE:
        texts = {**values, "expected": f"{values['expected']:d}", "ids": values["ids"].hex}
        return _percent_bytes(APPEND_ONE, _BINARY_OF_ONE), texts
    if statement.sql is APPEND:
        cursor.adapters.register_dumper(PackedArray, _PackedDumper)
        values = _packed(values, encoding_of(cursor.connection))
    return _percent_bytes(statement.sql, _BINARY), values


class _PackedDumper(Dumper):
    """Sends an array as it is; the server knows from the function which type it takes."""

    format = Format.BINARY

    def dump(self, obj: PackedArray) -> bytes:
        return obj


def _packed(values: Mapping[str, Any], encoding: str) -> Mapping[str, Any]:
    """The values with the arrays of a batch made ready: item by item psycopg takes three times as long."""
    return {
        **values,
        "ids": uuid_array(values["ids"]),
        "data": bytea_array(values["data"]),
        "types": text_array(values["types"], encoding),
        "meta": text_array(values["meta"], encoding),
    }


def _sqlalchemy(connection: Any, statement: Statement) -> Any:
    return connection.execute(_text(statement.sql), _literal(statement.values)).one()


async def _sqlalchemy_async(connection: Any, statement: Statement) -> Any:
    return (await connection.execute(_text(statement.sql), _literal(statement.values))).one()


def _django(connection: Any, statement: Statement) -> Any:
    if connection.vendor != "postgresql":
        raise DatabaseError(f"append needs PostgreSQL; this Django connection is to {connection.vendor}")
    with connection.cursor() as cursor:
        cursor.execute(_percent(statement.sql), _literal(statement.values))
        return cursor.fetchone()


def _adapter(kind: type, asynchronous: bool) -> Execute:
    """The adapter for a connection's class. Looked up by name: no driver is imported for it."""
    if issubclass(kind, psycopg.AsyncConnection if asynchronous else psycopg.Connection):
        return _psycopg_async if asynchronous else _psycopg
    names = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in kind.__mro__}
    for name, adapter in (_ASYNCHRONOUS if asynchronous else _SYNCHRONOUS).items():
        if name in names:
            return adapter
    word, other = ("append_async", "append") if asynchronous else ("append", "append_async")
    raise DatabaseError(
        f"{word} cannot use a {kind.__module__}.{kind.__qualname__}: give it a psycopg, SQLAlchemy or Django connection"
        f" ({other} takes {'synchronous' if asynchronous else 'asyncio'} ones)"
    )


_SYNCHRONOUS: Final[Mapping[str, Execute]] = {
    "sqlalchemy.Connection": _sqlalchemy,
    "sqlalchemy.Session": _sqlalchemy,
    "sqlalchemy.scoped_session": _sqlalchemy,
    "django.ConnectionProxy": _django,
    "django.BaseDatabaseWrapper": _django,
}
_ASYNCHRONOUS: Final[Mapping[str, Execute]] = {
    "sqlalchemy.AsyncConnection": _sqlalchemy_async,
    "sqlalchemy.AsyncSession": _sqlalchemy_async,
    "sqlalchemy.async_scoped_session": _sqlalchemy_async,
}


def _literal(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values with a list of bytes written as PostgreSQL writes it (manual, 8.15.2 and 8.4.1).

    Drivers that send text escape each element by regular expressions, which takes longer than all the rest.
    """
    data = values.get("data")
    if not isinstance(data, list):
        return values
    return {**values, "data": "{" + ",".join(f'"\\\\x{item.hex()}"' for item in data) + "}"}


@cache
def _percent(text: str, binary: frozenset[str] = frozenset()) -> str:
    if not binary:
        text = _as_literal(text)
    return _NAME.sub(lambda m: f"%({m[1]}){'b' if m[1] in binary else 's'}", text)


@cache
def _percent_bytes(text: str, binary: frozenset[str]) -> bytes:
    return _percent(text, binary).encode()


@cache
def _text(text: str) -> Any:
    from sqlalchemy import BigInteger, bindparam
    from sqlalchemy import text as sqlalchemy_text

    clause = sqlalchemy_text(_as_literal(text))
    # Left to guess, SQLAlchemy casts every int to INTEGER, which a version may outgrow.
    return clause.bindparams(bindparam("expected", type_=BigInteger)) if ":expected" in text else clause


def _as_literal(text: str) -> str:
    """The statement for a list of bytes given as :func:`_literal` writes it: a text that PostgreSQL parses."""
    return text.replace("CAST(:data AS bytea[])", "CAST(CAST(:data AS text) AS bytea[])")
