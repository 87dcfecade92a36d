"""The database whose tables are captured: its publication, its slot, and snapshots that the slot's stream joins.

Publication and slot are named ``outbox_capture_<8 hex digits of the log and the capture>_<capture>``, the slot with
the epoch behind it that made it: names of slots are unique in a whole cluster, and several logs may capture one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import conninfo, sql

from outbox.capture.table import Table
from outbox.capture.values import SESSION
from outbox.database import Connection, connect, connected, first_line, unreachable
from outbox.errors import DatabaseError, SettingsError
from outbox.logs import logger
from outbox.relay import slot as slots
from outbox.relay.replication import NewSlot, Replication

log = logger("outbox.capture")

NAME: Final = r"[a-z0-9_]{1,20}"
"""Of a capture: it is part of the slot's name, which has 63 bytes at most."""
WANTED: Final = "capture reads the write-ahead log"
LOOK_S: Final = 0.2
"""How often a slot being made is asked about, and whoever asked it to be made whether to stop."""

_IDENTITY: Final = """
SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT oid FROM pg_database
        WHERE datname = current_database()), current_setting('wal_level'), current_setting('server_encoding')
"""
_PUBLISHED: Final = """
SELECT coalesce(array_agg(r.prrelid::bigint) FILTER (WHERE r.prrelid IS NOT NULL), '{}') FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = %s GROUP BY p.oid
"""
_GENERATED: Final = "publish_generated_columns = stored, "
_OPTIONS: Final = "publish_via_partition_root = true, publish = 'insert, update, delete, truncate'"
_OWN_SLOTS: Final = "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s)"


@dataclass(frozen=True, slots=True)
class Names:
    """What a capture's publication and slots are called."""

    publication: str

    def slot(self, epoch: int) -> str:
        return f"{self.publication}_{epoch}"

    @property
    def slot_prefix(self) -> str:
        return f"{self.publication}_"


def names(log_connection: Connection, capture: str) -> Names:
    """The names for this log's capture."""
    mark = hashlib.sha256(f"{identity(log_connection)}/{capture}".encode()).hexdigest()[:8]
    return Names(f"outbox_capture_{mark}_{capture}")


def session(dsn: str) -> str:
    """The DSN with the settings that decide how values are written. Raises :class:`~outbox.errors.DatabaseError`."""
    own = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in SESSION.items())
    try:
        given = conninfo.conninfo_to_dict(dsn).get("options")
    except psycopg.Error as error:
        raise unreachable(dsn, error) from error
    return conninfo.make_conninfo(dsn, options=f"{given} {own}" if given else own)


def identity(connection: Connection) -> str:
    """The database, wherever it is reached: system identifier and oid."""
    row = connection.execute(_IDENTITY).fetchone() or ("", "")
    return f"{row[0]}/{row[1]}"


def check_able(connection: Connection) -> None:
    """Raise :class:`~outbox.errors.SettingsError` if this server or database cannot be captured from."""
    row = connection.execute(_IDENTITY).fetchone() or ("", "", "", "")
    if row[2] != "logical":
        raise SettingsError(f"{WANTED}, but PostgreSQL runs with wal_level = {row[2]}: set it to logical and restart")
    if row[3] == "SQL_ASCII":
        raise SettingsError(
            "a database with the encoding SQL_ASCII cannot be captured: its text may be in any encoding"
        )


def publish(connection: Connection, publication: str, tables: Sequence[Table]) -> None:
    """Make the publication one of just these tables.

    Changes of a table are in the stream from the next slot on that is made after this; hence a snapshot of a table
    is always that of a slot. Raises :class:`~outbox.errors.DatabaseError` if the role may not.
    """
    published = connection.execute(_PUBLISHED, [publication]).fetchone()
    if published is not None and set(published[0]) == {table.relation for table in tables}:
        return
    listed = sql.SQL(", ").join(table.only for table in tables)
    name = sql.Identifier(publication)
    generated = _GENERATED if connection.info.server_version >= 180_000 else ""
    options = sql.SQL(generated + _OPTIONS)
    create = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(name, listed, options)
    alter = sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(name, listed)
    try:
        connection.execute(create if published is None else alter)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise DatabaseError(f"a captured table was dropped or renamed just now: {first_line(error)}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"the role may not publish these tables: it must own them, and may CREATE in the database"
            f" ({first_line(error)})"
        ) from error


def clear(connection: Connection, named: Names) -> None:
    """Drop the publication and every slot of the capture."""
    for (slot,) in connection.execute(_OWN_SLOTS, [named.slot_prefix]).fetchall():
        slots.drop(connection, slot)
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(named.publication)))


@contextmanager
def exported(
    dsn: str, connection: Connection, name: str, stop: threading.Event, alive: Callable[[], None], *, temporary: bool
) -> Iterator[NewSlot | None]:
    """Make a slot; its snapshot may be imported while the block lasts. None if told to stop before it was made.

    It takes until every transaction that is open now has ended: ``alive`` is called all the while, and may raise.
    Raises :class:`~outbox.errors.DatabaseError`.
    """
    replication = Replication(session(dsn), connection, WANTED)
    try:
        try:
            replication.make_slot(name, temporary=temporary)
            yield _made(replication, stop, alive)
        except psycopg.errors.ConfigurationLimitExceeded as error:
            raise DatabaseError(f"no slot can be made: {first_line(error)}; raise max_replication_slots") from error
    finally:
        replication.close()


def _made(replication: Replication, stop: threading.Event, alive: Callable[[], None]) -> NewSlot | None:
    while not stop.is_set():
        alive()
        made = replication.made()
        if made is not None:
            return made
        replication.wait(LOOK_S)
    return None


@contextmanager
def at_snapshot(dsn: str, snapshot: str) -> Iterator[Connection]:
    """A connection in a read-only transaction that sees what an exported snapshot sees, and all rows of it."""
    with connected(session(dsn), row_security="off") as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        yield connection


def open_source(dsn: str) -> Connection:
    """An ordinary connection to the source."""
    return connect(session(dsn))
