"""Restore a backup into a database that holds no events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from outbox.backup.container import Line, read_file
from outbox.backup.manifest import Manifest, Tell, verify
from outbox.database import Connection, first_line
from outbox.errors import BackupError
from outbox.log.copy_format import EVENT_COLUMNS, HEADER, TRAILER, bigint, event_row, field
from outbox.log.migrate import migrate

TELL_EVENTS: Final = 1_000

RESTORED: Final = "the log was restored from a backup, and stores and broker may hold what it does not"
"""Why a restored log is halted."""

_LOCK: Final = "LOCK TABLE outbox.event, outbox.outbox IN ACCESS EXCLUSIVE MODE"
_HELD: Final = "SELECT EXISTS (SELECT FROM outbox.event) OR EXISTS (SELECT FROM outbox.outbox)"
_COPY: Final = f"COPY outbox.event ({EVENT_COLUMNS}) FROM STDIN (FORMAT BINARY)"
_SEQUENCE: Final = "SELECT setval(pg_get_serial_sequence('outbox.event', 'position'), greatest(%s, 1), %s)"
_AGAIN: Final = """
INSERT INTO outbox.outbox (position) SELECT position FROM outbox.event WHERE position >= %s ORDER BY position
"""
_HALT: Final = "UPDATE outbox.log_identity SET log_id = gen_random_uuid(), halted = %s, cut_at = clock_timestamp()"


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored. ``unpublished``: events put in the outbox again, as no relay was known to have sent them."""

    events: int
    last_position: int
    unpublished: int
    seconds: float


def restore(connection: Connection, folder: Path, tell: Tell | None = None) -> Restored:
    """Make the database's log what the backup holds, every column but ``xid`` exactly.

    1. Check the digest of every file. Nothing is written before.
    2. Bring the tables up to date (:func:`~outbox.log.migrate.migrate`).
    3. In one transaction: shut producers out, refuse a log that is not empty, copy, set the sequence, put what
       was not published in the outbox again, and halt relay and projectors until ``outbox reconcile``, as stores
       and broker may hold what the backup does not. A crash leaves an empty log.

    The log gets an identity of its own: it is another one from here on. Raises
    :class:`~outbox.errors.BackupError`.
    """
    started = time.monotonic()
    manifest = verify(folder)
    migrate(connection)
    try:
        with connection.transaction():
            connection.execute("SET LOCAL client_encoding TO 'UTF8'")  # as the rows below are written
            connection.execute(_LOCK)
            _check_empty(connection)
            copied = _copy(connection, manifest, folder, tell)
            connection.execute(_SEQUENCE, [manifest.last_position, bool(copied)])
            unpublished = _publish_again(connection, manifest)
            connection.execute(_HALT, [RESTORED])
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise BackupError(f"{folder} cannot be restored, nothing was written: {first_line(error)}") from error
    connection.execute("ANALYZE outbox.event")
    return Restored(copied, manifest.last_position, unpublished, time.monotonic() - started)


def _check_empty(connection: Connection) -> None:
    row = connection.execute(_HELD).fetchone()
    if row is None or row[0]:
        raise BackupError("the database holds events already: restore into an empty one")


def _copy(connection: Connection, manifest: Manifest, folder: Path, tell: Tell | None) -> int:
    """Copy every file; the number of events. Raises if a file holds another number than the manifest says."""
    done = 0
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        copy.write(HEADER)
        for row in _rows(manifest, folder):
            copy.write(row)
            done += 1
            if tell is not None and done % TELL_EVENTS == 0:
                tell(done, manifest.events, "restored")
        copy.write(TRAILER)
    if done != manifest.events:
        raise BackupError(f"{folder} holds {done} events where its manifest says {manifest.events}")
    return done


def _rows(manifest: Manifest, folder: Path) -> Iterator[bytes]:
    for file in manifest.files:
        yield from map(_row, read_file(folder / file.name))


def _row(line: Line) -> bytes:
    stream, type_ = field(line.stream.encode()), field(line.type.encode())
    meta, at = line.meta.encode(), bigint(line.at_us)
    return event_row(line.position, stream, line.version, type_, line.id, line.data, meta, at)


def _publish_again(connection: Connection, manifest: Manifest) -> int:
    if manifest.unpublished_from is None:
        return 0
    return connection.execute(_AGAIN, [manifest.unpublished_from]).rowcount
