"""Write a backup, or its next increment.

An increment holds the rows that its own snapshot sees and the former one did not: the relay's cursor
(:mod:`outbox.relay.cursor`) without an order. So an event that commits late, at a low position, is in the next
increment, and none is in two.

The manifest stands outside of the database. One that lost its last transactions (a fail-over, a restored disk), none of
which had appended, has all that is backed up, and gives the lost ones' ids to others: these are known by their
positions, which lie behind all that the backup holds.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from psycopg import sql

from outbox.backup.container import FileWriter, Line
from outbox.backup.manifest import NAME, DataFile, Increment, Manifest, Tell, flush_folder, read_manifest
from outbox.backup.manifest import write_manifest as put_manifest
from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import BackupError
from outbox.log.identity import Identity, check_identity, unknown_event
from outbox.relay.cursor import BEGINNING
from outbox.schema import HEADER_BYTES, MARKER

TELL_EVENTS: Final = 1_000

_NEW: Final = """
COPY (
    SELECT position, stream, version, type, id, data, meta::text,
           (extract(epoch FROM at - timestamptz '2000-01-01 00:00:00Z') * 1000000)::bigint
    FROM outbox.event WHERE NOT pg_visible_in_snapshot(xid, {}::pg_snapshot) OR position > {} ORDER BY position
) TO STDOUT (FORMAT BINARY)
"""
_TYPES: Final = ("int8", "text", "int8", "text", "uuid", "bytea", "text", "int8")
_ESTIMATE: Final = "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'outbox.event'::regclass"
_UNPUBLISHED: Final = """
SELECT least((SELECT min(position) FROM outbox.parked), min(o.position)) FROM outbox.outbox o
WHERE NOT EXISTS (SELECT FROM outbox.relay_cursor c WHERE pg_visible_in_snapshot(o.xid, c.a))
"""
_EVENT: Final = "SELECT id FROM outbox.event WHERE position = %s"


@dataclass(frozen=True, slots=True)
class BackedUp:
    """What a run did. ``events`` and ``bytes`` are those of its own increment."""

    events: int
    bytes: int
    files: int
    total_events: int
    last_position: int
    snapshot: str
    seconds: float


def backup(connection: Connection, folder: Path, registry: Registry, tell: Tell | None = None) -> BackedUp:
    """Bring the backup in ``folder`` up to now; an empty or missing folder gets the whole log.

    1. Lock the folder and remove what a killed run left: files that the manifest does not list.
    2. Take a snapshot, and write the rows that are new to it in files of bounded size. A crash leaves files
       that are not listed.
    3. Replace the manifest. A crash before it: the run never was. After it: nothing is left to do.

    Memory is bounded by a block of a file and one event. ``connection`` is in autocommit. Raises
    :class:`~outbox.errors.BackupError` if the folder holds the backup of another log, or of this one before it
    went back; :class:`~outbox.errors.LogWentBack` if this log must not be worked on.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        identity = check_identity(connection)
        former = _former(folder, identity)
        _check_not_back(connection, folder, former)
        _clear(folder, former)
        manifest = _write(connection, folder, former, registry, tell or _silent)
        put_manifest(folder, manifest)
    last = manifest.increments[-1]
    size = sum(f.bytes for f in last.files)
    events = sum(f.events for f in last.files)
    took = time.monotonic() - started
    return BackedUp(events, size, len(last.files), manifest.events, manifest.last_position, last.snapshot, took)


def _silent(_done: int, _total: int, _detail: str) -> None:
    """Nobody asked."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second backup into the same folder out; the lock goes with the process."""
    opened = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(opened)
        raise BackupError(f"{folder}: another backup into it is going on") from error
    try:
        yield
    finally:
        os.close(opened)


def _former(folder: Path, identity: Identity) -> Manifest:
    """The backup to add to; an empty one if there is none."""
    if not (folder / NAME).exists():
        return Manifest(identity.log_id, identity.system_now)
    former = read_manifest(folder)
    if former.log_id != identity.log_id or former.system_identifier != identity.system_now:
        raise BackupError(f"{folder} holds the backup of another log ({former.log_id}): use a new folder for this one")
    return former


def _check_not_back(connection: Connection, folder: Path, former: Manifest) -> None:
    """The former snapshot may be used only if this log still has what it saw."""
    if former.newest is None:
        return
    position, id_ = former.newest
    row = connection.execute(_EVENT, [position]).fetchone()
    erased = row is None and unknown_event(connection, [id_]) is None
    if not erased and (row is None or row[0] != id_):
        raise BackupError(
            f"{folder} holds event {id_} at position {position} and the log does not: PostgreSQL was restored to an"
            " earlier moment; run `outbox reconcile`, then back up into a new folder"
        )


def _clear(folder: Path, former: Manifest) -> None:
    """Remove what a run that was killed has left."""
    listed = {f.name for f in former.files}
    for path in [*folder.glob("events-*.avro"), *folder.glob("*.part")]:
        if path.name not in listed:
            path.unlink()


def _write(connection: Connection, folder: Path, former: Manifest, registry: Registry, tell: Tell) -> Manifest:
    increment = _Increment(folder, len(former.increments) + 1, tell)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        snapshot = str(_one(connection, "SELECT pg_current_snapshot()::text"))
        increment.total = int(_one(connection, _ESTIMATE)) if not former.increments else 0
        for line in _lines(connection, former.snapshot or BEGINNING.text, former.newest[0] if former.newest else 0):
            increment.add(line)
        unpublished = _one(connection, _UNPUBLISHED)
    files = increment.finish()
    flush_folder(folder)
    newest = max((m for m in (former.newest, increment.newest) if m is not None), default=None, key=lambda m: m[0])
    return former.with_increment(
        Increment(datetime.now(UTC).isoformat(timespec="seconds"), snapshot, files),
        newest=newest,
        unpublished_from=unpublished,
        schemas={**former.schemas, **_sources(registry, increment.used)},
    )


def _lines(connection: Connection, snapshot: str, position: int) -> Iterator[Line]:
    """The rows that this snapshot does not see, or behind this position, one at a time as the server sends them."""
    query = sql.SQL(_NEW).format(sql.Literal(snapshot), sql.Literal(position))
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        copy.set_types(_TYPES)
        for row in copy.rows():
            yield Line._make(row)


class _Increment:
    """The files of one run."""

    def __init__(self, folder: Path, number: int, tell: Tell) -> None:
        self._folder = folder
        self._number = number
        self._tell = tell
        self._writer: FileWriter | None = None
        self._files: list[DataFile] = []
        self._events = 0
        self.total = 0
        self.newest: tuple[int, uuid.UUID] | None = None
        self.used: set[tuple[str, bytes]] = set()
        """Types and the headers of their data: as many as there are schema versions."""

    def add(self, line: Line) -> None:
        if self._writer is None:
            self._writer = FileWriter(self._folder, f"events-{self._number:06}-{len(self._files) + 1:06}.avro")
        self._writer.write(line)
        self._events += 1
        self.newest = (line.position, line.id)
        self.used.add((line.type, line.data[:HEADER_BYTES]))
        if self._events % TELL_EVENTS == 0:
            self._tell(self._events, max(self.total, self._events), f"{len(self._files) + 1} files")
        if self._writer.full:
            self.finish()

    def finish(self) -> tuple[DataFile, ...]:
        """Close the file under way, if there is one."""
        if self._writer is not None:
            self._files.append(self._writer.finish())
            self._writer = None
        return tuple(self._files)


def _sources(registry: Registry, used: set[tuple[str, bytes]]) -> dict[str, Any]:
    """The schemas that these events were written with, as far as they are known here."""
    known = {(s.type, s.header): s for s in registry.check()}
    fingerprints = {pair: pair[1][len(MARKER) :][::-1].hex() for pair in used}
    return {f"{pair[0]}/{fingerprints[pair]}": known[pair].source for pair in used if pair in known}


def _one(connection: Connection, query: Any) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None
