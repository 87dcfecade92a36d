"""Loading many streams at once: the same rows an append writes, by binary COPY.

An append asks the database for each batch; a load asks once for some thousands of events. What it gives up
for that: the same ids again are a conflict, not a repetition.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as made
from typing import Any, Final, LiteralString

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from outbox.codec import Registry, default_registry
from outbox.errors import DatabaseError, DuplicateEvent, VersionConflict
from outbox.event import NewEvent
from outbox.log.as_sent import encoding_of, text_of
from outbox.log.copy_format import EVENT_COLUMNS, HEADER, TRAILER, event_row, field, position_rows, timestamp
from outbox.log.statement import Expected, Token, check_frame, encode_all, encode_meta, spoken

CHUNK_EVENTS: Final = 10_000
CHUNK_BYTES: Final = 32 * 1024 * 1024
"""A chunk is written once it has so many events, or as many as had so many bytes when encoded in the chunk before:
with one more batch, the most that is in memory."""

FIRST_EVENTS: Final = 1_000
"""Events of the first chunk, before which nothing is known of their size."""

PIECE_BYTES: Final = 32 * 1024
"""Rows are handed to the connection in pieces of about this size: enough for the server to be busy with."""

Batch = tuple[str, Expected, Sequence[NewEvent]]
"""A stream, the version it must have, and its next events (as many as one append takes)."""

_VERSIONS: Final = """
SELECT w.stream, coalesce((SELECT e.version FROM outbox.event e WHERE e.stream = w.stream
                           ORDER BY e.version DESC LIMIT 1), 0)
FROM unnest(%s::text[]) AS w (stream)
"""
# A sequence cannot be advanced by n in one step without a race, but n steps in one statement cost little; looking up
# its name costs ten times a step, so OFFSET keeps PostgreSQL from doing that n times too.
_RESERVE: Final = """
SELECT array_agg(nextval(s.sequence)), clock_timestamp(), pg_current_xact_id()::text
FROM (SELECT pg_get_serial_sequence('outbox.event', 'position')::regclass AS sequence OFFSET 0) s,
     generate_series(1, %s)
"""
_COPY_EVENT: Final = f"COPY outbox.event ({EVENT_COLUMNS}) FROM STDIN (FORMAT BINARY)"
_COPY_OUTBOX: Final = "COPY outbox.outbox (position) FROM STDIN (FORMAT BINARY)"
_STANDING: Final = "SELECT id FROM outbox.event WHERE id = ANY (%s) LIMIT 1"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load wrote. ``token`` is None if it was given nothing."""

    batches: int
    events: int
    token: Token | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """One stream's next events; what they say is encoded when they are sent."""

    stream: str
    expected: int
    ids: list[uuid.UUID]
    events: Sequence[NewEvent]


@dataclass(frozen=True, slots=True)
class _Form:
    """What the rows of a chunk have in common."""

    at: bytes
    encoding: str
    """The client's, in which PostgreSQL takes texts; not those in Avro, which are bytes to it."""


@dataclass(slots=True)
class _Chunk:
    """Batches that are written together."""

    batches: list[_Batch] = made(default_factory=list)
    events: int = 0
    size_bytes: int = 0
    """Of the encoded data, once written."""
    assumed: dict[str, int] = made(default_factory=dict)
    """The versions that the streams had when the chunk was written."""

    def add(self, stream: str, expected: Expected, events: Sequence[NewEvent]) -> None:
        self.batches.append(_Batch(**check_frame(stream, expected, events), events=events))
        self.events += len(events)

    def next_limit(self) -> int:
        """How many events of this chunk's size make a full one."""
        return max(1, min(CHUNK_EVENTS, CHUNK_BYTES * self.events // max(self.size_bytes, 1)))


def bulk_append(
    connection: psycopg.Connection[Any], batches: Iterable[Batch], registry: Registry | None = None
) -> Loaded:
    """Append many batches in the caller's transaction, all or nothing. Commits only on an autocommit connection.

    Batches of one stream are appended in the order given. ``batches`` may use the
    connection itself. Memory is bounded by :data:`CHUNK_EVENTS`. Raises
    :class:`~outbox.errors.VersionConflict`, :class:`~outbox.errors.DuplicateEvent` and
    :class:`~outbox.errors.InvalidEvent`; then nothing of the load is written and the transaction goes on (a
    savepoint sees to it). Above READ COMMITTED a lost race is the driver's ``UniqueViolation``.
    """
    if not isinstance(connection, psycopg.Connection):
        raise DatabaseError(f"a bulk load needs a psycopg.Connection, not a {type(connection).__qualname__}")
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    chunk, loaded = _Chunk(), Loaded(0, 0, None)
    if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
        cursor.execute("SELECT")  # begins the caller's transaction; else the block below would be one, and commit it
    try:
        with connection.transaction():
            for chunk in _chunks(batches):
                token = _write(cursor, chunk, registry or default_registry())
                loaded = Loaded(loaded.batches + len(chunk.batches), loaded.events + chunk.events, token)
    except psycopg.errors.UniqueViolation as error:
        _explain(cursor, chunk, error)
        raise
    return loaded


def _chunks(batches: Iterable[Batch]) -> Iterator[_Chunk]:
    chunk, limit = _Chunk(), FIRST_EVENTS
    for stream, expected, events in batches:
        chunk.add(stream, expected, events)
        if chunk.events >= limit:
            yield chunk
            chunk, limit = _Chunk(), chunk.next_limit()
    if chunk.batches:
        yield chunk


def _write(cursor: psycopg.Cursor[Any], chunk: _Chunk, registry: Registry) -> Token:
    """1. Look up the versions. 2. Reserve positions. 3. Copy the events, each encoded while the server is busy with
    those before it: their keys now hold the streams' ends until the transaction is over. 4. Copy the outbox rows,
    whose ``seq`` is drawn now, behind every earlier writer of these streams. A failure anywhere is undone by the
    savepoint around."""
    chunk.assumed = _versions(cursor, {batch.stream for batch in chunk.batches})
    bases = _bases(chunk)
    cursor.execute(_RESERVE, [chunk.events])
    ((positions, at, xid),) = cursor.fetchall()
    form = _Form(timestamp(at), encoding_of(cursor.connection))
    _copy(cursor, _COPY_EVENT, _rows(chunk, bases, positions, form, registry))
    _copy(cursor, _COPY_OUTBOX, [position_rows(positions)])
    cursor.execute("SELECT outbox.wake()")
    return Token(int(xid))


def _copy(cursor: psycopg.Cursor[Any], statement: LiteralString, rows: Iterable[bytes]) -> None:
    with cursor.copy(statement) as copy:
        copy.write(HEADER)
        for row in rows:
            copy.write(row)
        copy.write(TRAILER)


def _versions(cursor: psycopg.Cursor[Any], streams: Iterable[str]) -> dict[str, int]:
    return {text_of(stream): version for stream, version in cursor.execute(_VERSIONS, [list(streams)])}


def _bases(chunk: _Chunk) -> list[int]:
    """The version that each batch goes on from; raises the first conflict, before anything is sent."""
    versions, bases = dict(chunk.assumed), []
    for batch in chunk.batches:
        base = versions[batch.stream]
        if not (batch.expected in (base, -1) or (batch.expected == -2 and base > 0)):
            raise VersionConflict(batch.stream, spoken(batch.expected), base)
        bases.append(base)
        versions[batch.stream] = base + len(batch.events)
    return bases


def _rows(
    chunk: _Chunk, bases: Sequence[int], positions: Sequence[int], form: _Form, registry: Registry
) -> Iterator[bytes]:
    """The rows of the events, in pieces."""
    place, rows, size = iter(positions), [], 0
    for batch, base in zip(chunk.batches, bases, strict=True):
        data = encode_all(batch.events, registry)
        chunk.size_bytes += sum(map(len, data))
        for row in _batch_rows(batch, base, data, place, form):
            rows.append(row)
            size += len(row)
            if size >= PIECE_BYTES:
                yield b"".join(rows)
                rows, size = [], 0
    yield b"".join(rows)


def _batch_rows(batch: _Batch, base: int, data: list[bytes], place: Iterator[int], form: _Form) -> Iterator[bytes]:
    encoding = form.encoding
    stream, types = field(batch.stream.encode(encoding)), {e.type for e in batch.events}
    names = {type_: field(type_.encode(encoding)) for type_ in types}
    for version, (event, encoded) in enumerate(zip(batch.events, data, strict=True), base + 1):
        meta = encode_meta(event.meta).encode(encoding)
        yield event_row(next(place), stream, version, names[event.type], event.id, encoded, meta, form.at)


def _explain(cursor: psycopg.Cursor[Any], chunk: _Chunk, error: psycopg.errors.UniqueViolation) -> None:
    """Raise what the violated key means, if it can be seen from here. The savepoint is rolled back already."""
    if error.diag.constraint_name == "event_id":
        raise DuplicateEvent(_stream_of(cursor, chunk, error)) from error
    now = _versions(cursor, chunk.assumed)
    for batch in chunk.batches:
        if now[batch.stream] != chunk.assumed[batch.stream]:
            raise VersionConflict(batch.stream, spoken(batch.expected), now[batch.stream]) from error


def _stream_of(cursor: psycopg.Cursor[Any], chunk: _Chunk, error: psycopg.errors.UniqueViolation) -> str:
    """The stream whose batch holds the id that stands already: in the log, or earlier in this same load."""
    streams = {id_: batch.stream for batch in chunk.batches for id_ in batch.ids}
    named = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", error.diag.message_detail or "")
    if named:
        return str(streams.get(uuid.UUID(named[0]), "?"))
    found = cursor.execute(_STANDING, [list(streams)]).fetchone()
    return str(streams[found[0]]) if found else "?"
