"""Migrations: numbered files of plain SQL beside this module, each run once, in order.

Safe to run twice and from two processes at once: the whole run is one transaction behind one advisory
lock, and the table ``outbox.migration`` says what has been run. A file that has been released is never
edited; the digest of each is kept so that an edited one is noticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from outbox.database import Connection, first_line
from outbox.errors import DatabaseError

FOLDER: Final = Path(__file__).parent / "sql"

LOCK: Final = 0x6F7574626F78
"""Key of the advisory lock: "outbox" in ASCII."""

SERVER_MINIMUM: Final = 140000
"""PostgreSQL 14: xid8 and pg_snapshot came with 13, CREATE OR REPLACE TRIGGER with 14."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. ``number`` is the four digits its name begins with."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()[:16]


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """All migrations in order."""
    return [Migration(int(p.stem[:4]), p.stem[5:], p.read_text("utf-8")) for p in sorted(folder.glob("[0-9]*.sql"))]


def migrate(connection: Connection, folder: Path = FOLDER) -> list[Migration]:
    """Bring the database up to date and return what was run, which is nothing the second time.

    ``connection`` must not be in a transaction. Raises :class:`~outbox.errors.DatabaseError`.
    """
    if connection.info.server_version < SERVER_MINIMUM:
        raise DatabaseError(f"PostgreSQL {connection.info.server_version // 10000} is too old: 14 or newer is needed")
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            done = _done(connection)
            return [_run(connection, m) for m in migrations(folder) if not _is_done(m, done)]
    except psycopg.Error as error:
        raise DatabaseError(f"migration failed, nothing was changed: {first_line(error)}") from error


def _done(connection: Connection) -> dict[int, str]:
    connection.execute("CREATE SCHEMA IF NOT EXISTS outbox")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS outbox.migration (number integer PRIMARY KEY, name text NOT NULL,"
        " digest text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    return dict(connection.execute("SELECT number, digest FROM outbox.migration").fetchall())


def _is_done(migration: Migration, done: dict[int, str]) -> bool:
    digest = done.get(migration.number)
    if digest is not None and digest != migration.digest:
        raise DatabaseError(
            f"migration {migration.number:04} {migration.name!r} was run here with another text:"
            " released migrations must not be edited"
        )
    return digest is not None


def _run(connection: Connection, migration: Migration) -> Migration:
    connection.execute(migration.sql.encode())
    connection.execute(
        "INSERT INTO outbox.migration (number, name, digest) VALUES (%s, %s, %s)",
        [migration.number, migration.name, migration.digest],
    )
    return migration
