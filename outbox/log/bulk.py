"""Loading many streams at once: the same rows an append writes, by binary COPY.

An append asks the database for each batch; a load asks once for some thousands of events. What it gives up
for that: the same ids again are a conflict, not a repetition.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as made
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import tuple_row

from outbox.codec import Registry, default_registry
from outbox.errors import DatabaseError, DuplicateEvent, VersionConflict
from outbox.event import NewEvent
from outbox.log.copy_format import EVENT_COLUMNS, HEADER, TRAILER, event_row, field, position_rows, timestamp
from outbox.log.statement import Expected, Token, check_batch, spoken

CHUNK_EVENTS: Final = 10_000
CHUNK_BYTES: Final = 32 * 1024 * 1024
"""A chunk is written once it has so many events or bytes: with one more batch, the most that is in memory."""

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


@dataclass(slots=True)
class _Chunk:
    """Batches on their way: each one's checked values, as an append would send them."""

    batches: list[Mapping[str, Any]] = made(default_factory=list)
    events: int = 0
    size_bytes: int = 0
    assumed: dict[str, int] = made(default_factory=dict)
    """The versions that the streams had when the chunk was written."""

    def add(self, values: Mapping[str, Any]) -> None:
        self.batches.append(values)
        self.events += len(values["ids"])
        self.size_bytes += sum(map(len, values["data"]))

    @property
    def full(self) -> bool:
        return self.events >= CHUNK_EVENTS or self.size_bytes >= CHUNK_BYTES


def bulk_append(
    connection: psycopg.Connection[Any], batches: Iterable[Batch], registry: Registry | None = None
) -> Loaded:
    """Append many batches in the caller's open transaction, all or nothing.

    Batches of one stream are appended in the order given. Memory is bounded by :data:`CHUNK_EVENTS`. Raises
    :class:`~outbox.errors.VersionConflict`, :class:`~outbox.errors.DuplicateEvent` and
    :class:`~outbox.errors.InvalidEvent`; then nothing of the load is written and the transaction goes on (a
    savepoint sees to it). Above READ COMMITTED a lost race is the driver's ``UniqueViolation``.
    """
    if not isinstance(connection, psycopg.Connection):
        raise DatabaseError(f"a bulk load needs a psycopg.Connection, not a {type(connection).__qualname__}")
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    chunk, loaded = _Chunk(), Loaded(0, 0, None)
    try:
        with connection.transaction():
            for chunk in _chunks(batches, registry or default_registry()):
                token = _write(cursor, chunk)
                loaded = Loaded(loaded.batches + len(chunk.batches), loaded.events + chunk.events, token)
    except psycopg.errors.UniqueViolation as error:
        _explain(cursor, chunk, error)
        raise
    return loaded


def _chunks(batches: Iterable[Batch], registry: Registry) -> Iterator[_Chunk]:
    chunk = _Chunk()
    for stream, expected, events in batches:
        chunk.add(check_batch(stream, expected, events, registry))
        if chunk.full:
            yield chunk
            chunk = _Chunk()
    if chunk.batches:
        yield chunk


def _write(cursor: psycopg.Cursor[Any], chunk: _Chunk) -> Token:
    """1. Look up the versions. 2. Reserve positions. 3. Copy the events: their keys now hold the streams' ends
    until the transaction is over. 4. Copy the outbox rows, whose ``seq`` is drawn now, behind every earlier
    writer of these streams. A failure anywhere is undone by the savepoint around."""
    chunk.assumed = _versions(cursor, {b["stream"] for b in chunk.batches})
    cursor.execute(_RESERVE, [chunk.events])
    ((positions, at, xid),) = cursor.fetchall()
    rows = _rows(chunk, positions, timestamp(at))
    _copy(cursor, _COPY_EVENT, rows)
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
    return dict(cursor.execute(_VERSIONS, [list(streams)]).fetchall())


def _rows(chunk: _Chunk, positions: Sequence[int], at: bytes) -> list[bytes]:
    """The rows of the events, one piece a batch; raises the first conflict before anything is sent."""
    versions, pieces, place = dict(chunk.assumed), [], iter(positions)
    for batch in chunk.batches:
        stream, expected, base = batch["stream"], batch["expected"], versions[batch["stream"]]
        if not (expected in (base, -1) or (expected == -2 and base > 0)):
            raise VersionConflict(stream, spoken(expected), base)
        pieces.append(b"".join(_batch_rows(batch, base, place, at)))
        versions[stream] = base + len(batch["ids"])
    return pieces


def _batch_rows(batch: Mapping[str, Any], base: int, place: Iterator[int], at: bytes) -> Iterator[bytes]:
    stream, types = field(batch["stream"].encode()), {t: field(t.encode()) for t in set(batch["types"])}
    columns = zip(batch["types"], batch["ids"], batch["data"], batch["meta"], strict=True)
    for version, (type_, id_, data, meta) in enumerate(columns, base + 1):
        yield event_row(next(place), stream, version, types[type_], id_, data, meta.encode(), at)


def _explain(cursor: psycopg.Cursor[Any], chunk: _Chunk, error: psycopg.errors.UniqueViolation) -> None:
    """Raise what the violated key means, if it can be seen from here. The savepoint is rolled back already."""
    if error.diag.constraint_name == "event_id":
        raise DuplicateEvent(_stream_of(cursor, chunk, error)) from error
    now = _versions(cursor, chunk.assumed)
    for batch in chunk.batches:
        stream, expected = batch["stream"], batch["expected"]
        if now[stream] != chunk.assumed[stream]:
            raise VersionConflict(stream, spoken(expected), now[stream]) from error


def _stream_of(cursor: psycopg.Cursor[Any], chunk: _Chunk, error: psycopg.errors.UniqueViolation) -> str:
    """The stream whose batch holds the id that stands already: in the log, or earlier in this same load."""
    streams = {id_: batch["stream"] for batch in chunk.batches for id_ in batch["ids"]}
    named = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", error.diag.message_detail or "")
    if named:
        return str(streams.get(uuid.UUID(named[0]), "?"))
    found = cursor.execute(_STANDING, [list(streams)]).fetchone()
    return str(streams[found[0]]) if found else "?"
