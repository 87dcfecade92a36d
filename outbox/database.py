"""Connections of the product's own processes. Producers bring theirs (see :mod:`outbox.log.append`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import conninfo, sql

from outbox.errors import DatabaseError

Connection = psycopg.Connection[tuple[Any, ...]]

DEFAULTS: Final[Mapping[str, str | int]] = {
    "connect_timeout": 10,  # long enough for a busy server, short enough for a person who mistyped a host
    # A server that vanished without a word is noticed in about half a minute, not in TCP's two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
    "application_name": "outbox",
    "client_encoding": "UTF8",  # whatever PGCLIENTENCODING says: stores and brokers hold every character
}
"""libpq's settings where the DSN says nothing."""

HALTED_MS: Final = 10_000
"""How long the server lets a transaction stand still of a process that has successors. One that is stopped in its midst
(its process halted, its machine asleep) has lost its lease or its partitions, but would hold its successor up with what
it has locked: the server ends it."""

# A database or role may have been told not to wait for its commits. A leader's epoch must not be undone by a crash, nor
# a cursor by which something outside was told to forget.
_LASTING: Final = """
SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'
"""

NEEDED: Final = ("event", "outbox", "relay_cursor", "checkpoint", "dead_letter")
NEWEST: Final = ("generation", "store")
"""A table and its column of the newest migration, which is there if all are."""

NOT_MIGRATED: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
)
"""What PostgreSQL says of a database that lacks a migration."""

LET_GO_MS: Final = 2_000
"""How long a lock may still be held by a process that is gone: its server process ends a moment after it."""

_MIGRATED: Final = """
SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = 'outbox' AND tablename = ANY (%s)),
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('outbox.' || %s) AND attname = %s)
"""


def connect(dsn: str, *, autocommit: bool = True, **settings: str) -> Connection:
    """Open a connection; ``settings`` are PostgreSQL's own (``enable_seqscan="off"``).

    Raises :class:`~outbox.errors.DatabaseError` with one line if the server cannot be reached.
    """
    try:
        connection = psycopg.connect(_with_defaults(dsn), autocommit=autocommit)
    except (psycopg.Error, UnicodeError, ValueError) as error:
        raise unreachable(dsn, error) from error
    try:
        for name, value in settings.items():
            connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        if not autocommit:
            connection.commit()
    except psycopg.Error as error:
        connection.close()
        raise DatabaseError(f"PostgreSQL refused a setting: {first_line(error)}") from error
    return connection


def halting() -> dict[str, str]:
    """The setting for :data:`HALTED_MS`."""
    return {"idle_in_transaction_session_timeout": str(HALTED_MS)}


@contextmanager
def leading(dsn: str) -> Iterator[Connection]:
    """:func:`connected`, for what a leader writes: see :data:`HALTED_MS` and :data:`_LASTING`."""
    with connected(dsn, **halting()) as connection:
        connection.execute(_LASTING)
        yield connection


@contextmanager
def connected(dsn: str, **settings: str) -> Iterator[Connection]:
    """:func:`connect`, closed at the end; a connection lost in between raises ``DatabaseError``."""
    connection = connect(dsn, autocommit=True, **settings)
    try:
        yield connection
    except NOT_MIGRATED as error:
        raise not_migrated(error) from error
    except psycopg.OperationalError as error:
        if not connection.broken:
            raise
        raise DatabaseError(f"PostgreSQL at {_address(dsn)} broke the connection: {first_line(error)}") from error
    finally:
        connection.close()


def alone(connection: Connection, kind: int, what: str) -> bool:
    """Take an advisory lock for as long as the connection lives; whether it was free within :data:`LET_GO_MS`."""
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LET_GO_MS)))
            connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [kind, what])
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def check_migrated(connection: Connection) -> None:
    """Raise :class:`~outbox.errors.DatabaseError` if tables are missing, or are those of an earlier release."""
    tables, newest = connection.execute(_MIGRATED, [list(NEEDED), *NEWEST]).fetchone() or (0, False)
    if tables < len(NEEDED) or not newest:
        raise DatabaseError("the database has no outbox tables (or old ones): run `outbox migrate` first")


def not_migrated(error: Exception) -> DatabaseError:
    return DatabaseError(f"the database lacks a table or a column: run `outbox migrate` first ({first_line(error)})")


def unreachable(dsn: str, error: Exception) -> DatabaseError:
    """The error for a server that cannot be reached, with the address but never the password."""
    if not _is_dsn(dsn):  # libpq's own words quote the part that it does not understand, which may be the password
        return DatabaseError(
            "the address of PostgreSQL is neither postgresql://USER:PASSWORD@HOST:PORT/DATABASE (where %, @, / and : in"
            " a name or a password are written %25, %40, %2F and %3A) nor host=... dbname=..., or it has a parameter"
            " that libpq does not know"
        )
    return DatabaseError(f"PostgreSQL at {_address(dsn)} cannot be reached: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages of one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _with_defaults(dsn: str) -> str:
    given = conninfo.conninfo_to_dict(dsn)
    return conninfo.make_conninfo(dsn, **{name: value for name, value in DEFAULTS.items() if name not in given})


def _is_dsn(dsn: str) -> bool:
    try:
        conninfo.conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError, ValueError):
        return False
    return True


def _address(dsn: str) -> str:
    parts = conninfo.conninfo_to_dict(dsn)
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
