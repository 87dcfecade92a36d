"""Connections of the product's own processes. Producers bring theirs (see :mod:`outbox.log.append`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql

from outbox.errors import DatabaseError

Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_S: Final = 10
"""Long enough for a busy server, short enough for a person who mistyped a host."""

NEEDED = ("event", "outbox", "relay_cursor", "checkpoint", "dead_letter")


def connect(dsn: str, *, autocommit: bool = True, **settings: str) -> Connection:
    """Open a connection; ``settings`` are PostgreSQL's own (``enable_seqscan="off"``).

    Raises :class:`~outbox.errors.DatabaseError` with one line if the server cannot be reached.
    """
    try:
        connection = psycopg.connect(dsn, autocommit=autocommit, connect_timeout=CONNECT_TIMEOUT_S)
        for name, value in settings.items():
            connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    except (psycopg.Error, UnicodeError) as error:
        raise unreachable(dsn, error) from error
    return connection


@contextmanager
def connected(dsn: str, **settings: str) -> Iterator[Connection]:
    """:func:`connect`, closed at the end; a connection lost in between raises ``DatabaseError``."""
    connection = connect(dsn, **settings)
    try:
        yield connection
    except psycopg.errors.UndefinedTable as error:
        raise not_migrated(error) from error
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from error
    finally:
        connection.close()


def check_migrated(connection: Connection) -> None:
    """Raise :class:`~outbox.errors.DatabaseError` if tables are missing."""
    found = connection.execute(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'outbox' AND tablename = ANY(%s)", [list(NEEDED)]
    ).fetchone()
    if found is None or found[0] < len(NEEDED):
        raise DatabaseError("the database has no outbox tables (or old ones): run `outbox migrate` first")


def not_migrated(error: Exception) -> DatabaseError:
    return DatabaseError(f"the database lacks a table: run `outbox migrate` first ({first_line(error)})")


def unreachable(dsn: str, error: Exception) -> DatabaseError:
    """The error for a server that cannot be reached, with the address but never the password."""
    return DatabaseError(f"PostgreSQL at {_address(dsn)} cannot be reached: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _address(dsn: str) -> str:
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        return "the given address"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
