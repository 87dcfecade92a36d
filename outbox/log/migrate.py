"""Migrations: numbered files of plain SQL beside this module, each run once, in order.

Safe to run twice and from two processes at once: the whole run is one transaction behind one advisory
lock, and the table ``outbox.migration`` says what has been run. A file that has been released is never
edited; the digest of each is kept so that an edited one is noticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
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
    """All migrations in order. Raises :class:`~outbox.errors.DatabaseError` if two have one number."""
    found = [Migration(int(p.stem[:4]), p.stem[5:], p.read_text("utf-8")) for p in sorted(folder.glob("[0-9]*.sql"))]
    for one, next_ in pairwise(found):
        if one.number == next_.number:
            raise DatabaseError(f"two migrations are numbered {one.number:04}: {one.name!r} and {next_.name!r}")
    return found


def migrate(connection: Connection, folder: Path = FOLDER) -> list[Migration]:
    """Bring the database up to date and return what was run, which is nothing the second time.

    ``connection`` must not be in a transaction. Raises :class:`~outbox.errors.DatabaseError`.
    """
    server, needed = connection.info.server_version // 10000, SERVER_MINIMUM // 10000
    if server < needed:
        raise DatabaseError(f"PostgreSQL {server} is too old: {needed} or newer is needed")
    known = migrations(folder)
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            done = _done(connection)
            _check(known, done)
            return [_run(connection, m) for m in known if m.number not in done]
    except psycopg.Error as error:
        raise DatabaseError(f"migration failed, nothing was changed: {first_line(error)}") from error


def _done(connection: Connection) -> dict[int, str]:
    """The digests of what has been run, by number."""
    connection.execute("CREATE SCHEMA IF NOT EXISTS outbox")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS outbox.migration (number integer PRIMARY KEY, name text NOT NULL,"
        " digest text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    return dict(connection.execute("SELECT number, digest FROM outbox.migration").fetchall())


def _check(known: list[Migration], done: dict[int, str]) -> None:
    """Raise :class:`~outbox.errors.DatabaseError` unless what has been run is what these files begin with."""
    unknown = set(done) - {m.number for m in known}
    if unknown:
        raise DatabaseError(
            f"the database has migration {max(unknown):04}, which this release does not know: run a newer release"
        )
    newest = max(done, default=0)
    for migration in known:
        digest = done.get(migration.number)
        if digest is None and migration.number < newest:
            raise DatabaseError(
                f"migration {migration.number:04} {migration.name!r} comes before {newest:04}, which was run already:"
                " give it the next free number"
            )
        if digest not in (None, migration.digest):
            raise DatabaseError(
                f"migration {migration.number:04} {migration.name!r} was run here with another text:"
                " released migrations must not be edited"
            )


def _run(connection: Connection, migration: Migration) -> Migration:
    connection.execute(migration.sql.encode())
    connection.execute(
        "INSERT INTO outbox.migration (number, name, digest) VALUES (%s, %s, %s)",
        [migration.number, migration.name, migration.digest],
    )
    return migration
