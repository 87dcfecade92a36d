"""Appending inside the transaction the caller already has open.

``append`` takes whatever a Python service holds; ``append_async`` the same for asyncio. Neither opens a
connection, begins, commits or rolls back: that stays the caller's.

=====================================================  ==================
psycopg ``Connection``                                 ``append``
psycopg ``AsyncConnection``                            ``append_async``
SQLAlchemy ``Connection``, ``Session``                 ``append``
SQLAlchemy ``AsyncConnection``, ``AsyncSession``       ``append_async``
Django's ``connection`` (``django.db.connection``)     ``append``
=====================================================  ==================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import psycopg

from outbox.codec import Registry, default_registry
from outbox.errors import DatabaseError
from outbox.event import NewEvent
from outbox.log.statement import (
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
    written and the transaction goes on) and :class:`~outbox.errors.InvalidEvent` (before any SQL).
    """
    statement = append_statement(stream, expected, _many(events), registry or default_registry())
    return read_append(statement, _adapter(type(connection), False)(connection, statement))


async def append_async(
    connection: Any,
    stream: str,
    events: Sequence[NewEvent] | NewEvent,
    *,
    expected: Expected = "any",
    registry: Registry | None = None,
) -> Appended:
    """:func:`append` for asyncio connections."""
    statement = append_statement(stream, expected, _many(events), registry or default_registry())
    return read_append(statement, await _adapter(type(connection), True)(connection, statement))


def send(
    connection: Any, topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None
) -> Token:
    """Hand a plain message (no event, nothing in the log) to the relay, in the caller's transaction."""
    statement = send_statement(topic, key, payload, headers)
    return Token(int(_adapter(type(connection), False)(connection, statement)[0]))


async def send_async(
    connection: Any, topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None
) -> Token:
    """:func:`send` for asyncio connections."""
    statement = send_statement(topic, key, payload, headers)
    return Token(int((await _adapter(type(connection), True)(connection, statement))[0]))


def _many(events: Sequence[NewEvent] | NewEvent) -> Sequence[NewEvent]:
    return (events,) if isinstance(events, NewEvent) else events


# ------------------------------------------------------------------ adapters


def _psycopg(connection: Any, statement: Statement) -> Any:
    return connection.execute(_percent(statement.sql), statement.values).fetchone()


async def _psycopg_async(connection: Any, statement: Statement) -> Any:
    return await (await connection.execute(_percent(statement.sql), statement.values)).fetchone()


def _sqlalchemy(connection: Any, statement: Statement) -> Any:
    return connection.execute(_text(statement.sql), statement.values).one()


async def _sqlalchemy_async(connection: Any, statement: Statement) -> Any:
    return (await connection.execute(_text(statement.sql), statement.values)).one()


def _django(connection: Any, statement: Statement) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(_percent(statement.sql), statement.values)
        return cursor.fetchone()


@cache
def _adapter(kind: type, asynchronous: bool) -> Execute:
    """The adapter for a connection's class. Looked up by name: no driver is imported for it."""
    if issubclass(kind, psycopg.AsyncConnection if asynchronous else psycopg.Connection):
        return _psycopg_async if asynchronous else _psycopg
    names = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in kind.__mro__}
    known: dict[str, Execute] = (
        {"sqlalchemy.AsyncConnection": _sqlalchemy_async, "sqlalchemy.AsyncSession": _sqlalchemy_async}
        if asynchronous
        else {
            "sqlalchemy.Connection": _sqlalchemy,
            "sqlalchemy.Session": _sqlalchemy,
            "sqlalchemy.scoped_session": _sqlalchemy,
            "django.ConnectionProxy": _django,
            "django.BaseDatabaseWrapper": _django,
        }
    )
    for name, adapter in known.items():
        if name in names:
            return adapter
    word = "append_async" if asynchronous else "append"
    raise DatabaseError(
        f"{word} cannot use a {kind.__module__}.{kind.__qualname__}: give it a psycopg, SQLAlchemy or Django connection"
        f" ({'append' if asynchronous else 'append_async'} takes {'sync' if asynchronous else 'async'} ones)"
    )


@cache
def _percent(text: str) -> str:
    return _NAME.sub(r"%(\1)s", text)


@cache
def _text(text: str) -> Any:
    from sqlalchemy import text as sqlalchemy_text

    return sqlalchemy_text(text)
