"""Writes captured changes into the log: in chunks, in one transaction with the position they reach.

A source transaction becomes part of one log transaction, however large: it is appended chunk by chunk, so that memory
stays bounded, and committed once. Several small ones share one commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from outbox.capture import registered
from outbox.capture.form import Columns
from outbox.capture.registered import Standing
from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import DatabaseError, DuplicateEvent, InvalidEvent, VersionConflict
from outbox.event import NewEvent
from outbox.log.bulk import Batch, bulk_append

CHUNK_EVENTS: Final = 5_000
CHUNK_BYTES: Final = 16 << 20
"""What waits in memory, at most, with one more row; ``CHUNK_BYTES`` is of the values as PostgreSQL sent them."""
CHUNK_HOLES: Final = 200
"""Of these, events whose large values PostgreSQL did not send: how large they are is seen when the log is asked."""
PAGE_STREAMS: Final = 500
"""Rows of the log that are in memory at a time while all are looked at."""

DELETED: Final = "row.deleted"
STATES: Final = frozenset({"row.inserted", "row.updated"})

_LAST: Final = """
SELECT w.stream, e.type, e.data FROM unnest(%s::text[]) AS w (stream)
CROSS JOIN LATERAL (SELECT type, data FROM outbox.event e WHERE e.stream = w.stream ORDER BY version DESC LIMIT 1) e
"""
# Skips from stream to stream by the index, instead of reading all events of each.
_STREAMS: Final = """
WITH RECURSIVE s (stream, n) AS (
    (SELECT stream, 1 FROM outbox.event WHERE stream > %(after)s AND stream < %(below)s ORDER BY stream LIMIT 1)
    UNION ALL
    SELECT (SELECT e.stream FROM outbox.event e WHERE e.stream > s.stream AND e.stream < %(below)s
            ORDER BY e.stream LIMIT 1), n + 1
    FROM s WHERE s.stream IS NOT NULL AND n < %(page)s
)
SELECT stream FROM s WHERE stream IS NOT NULL
"""
_STANDING: Final = "SELECT id FROM outbox.event WHERE id = ANY (%s)"
_SERIES: Final = "SELECT coalesce(max(version), 0) FROM outbox.event WHERE stream = %s"


class Incomplete(DatabaseError):
    """An update left a large value out as unchanged, and the log has no earlier state of the row to take it from."""

    def __init__(self, stream: str, category: str) -> None:
        super().__init__(f"the log has no earlier state of {stream!r}; all rows of its table are looked at again")
        self.category = category


@dataclass(slots=True)
class Pending:
    """An event on its way. ``holes``: columns to be taken from the state before."""

    stream: str
    type: str
    data: dict[str, Any]
    id: uuid.UUID
    holes: tuple[str, ...] = ()


@dataclass(slots=True)
class Counts:
    """What was done since the process began."""

    events: int = 0
    rows: int = 0
    """Read from snapshots."""


@dataclass(slots=True)
class Writer:
    """Used by one thread; the connection is in autocommit, and is of no more use once a method has raised."""

    connection: Connection
    registry: Registry
    standing: Standing
    alive: Callable[[], None]
    """Called with every chunk: raises if somebody else leads by now."""
    counts: Counts = field(default_factory=Counts)
    _pending: list[Pending] = field(default_factory=list)
    _bytes: int = 0
    _holes: int = 0
    _open: bool = False

    def add(self, event: Pending, size: int) -> None:
        """Put an event behind the others. ``size``: of its values, in bytes."""
        self._pending.append(event)
        self._bytes += size
        self._holes += bool(event.holes)
        if len(self._pending) >= CHUNK_EVENTS or self._bytes >= CHUNK_BYTES or self._holes >= CHUNK_HOLES:
            self.flush()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to commit."""
        return self._open or bool(self._pending)

    def begin(self) -> None:
        """Open the log transaction, if it is not open."""
        if not self._open:
            self.connection.execute("BEGIN")
            self._open = True

    def stay(self) -> None:
        """Keep the log transaction, if one is open, from being taken for a halted leader's: between two chunks of a
        transaction the source may go through millions of rows of tables that nobody captures."""
        if self._open:
            self.connection.execute("SELECT")

    def commit(self, lsn: int) -> None:
        """Everything before ``lsn`` of the source is in the log with this.

        1. Append what waits. 2. Move the position, if this epoch still leads; else :class:`~outbox.errors.Fenced`.
        3. Commit. A crash before the third leaves nothing: the source gives all of it again.
        """
        self.begin()
        self.flush()
        registered.move(self.connection, self.standing, lsn)
        self.connection.execute("COMMIT")
        self._open = False

    def flush(self) -> None:
        """Append what waits, within the open transaction. Events that stand in the log already are passed by."""
        if not self._pending:
            return
        self.alive()
        self.begin()
        self._fill()
        self._append(self._pending)
        self._pending, self._bytes, self._holes = [], 0, 0

    def last(self, streams: Iterable[str]) -> dict[str, Columns]:
        """The rows of these streams as the log has them now; those deleted or never seen are left out. What somebody
        else appended to such a stream says nothing of its row: a state without columns, which is put right."""
        rows = self.connection.execute(_LAST, [list(streams)]).fetchall()
        return {s: self._columns(t, data) for s, t, data in rows if t != DELETED}

    def _columns(self, type_: str, data: bytes) -> Columns:
        columns: Columns = self.registry.decode(type_, data)["columns"] if type_ in STATES else {}
        return columns

    def state(self, stream: str, names: Iterable[str]) -> Columns:
        """The row of one stream as the log has it. Raises :class:`Incomplete` if it lacks one of these columns."""
        found = self.last([stream]).get(stream, {})
        if not found.keys() >= set(names):
            raise Incomplete(stream, stream.partition("-")[0])
        return found

    def live(self, category: str) -> Iterator[dict[str, Columns]]:
        """Every row of a category that the log has, in pages by stream. What waits is appended first."""
        self.flush()
        after = category  # which is a stream too, of descriptions; the next one may be that of a row with an empty key
        while page := self._streams(after, f"{category}."):
            self.alive()  # there may be nothing to append for as long as it takes to look at them all
            yield self.last(page)
            after = page[-1]

    def version(self, stream: str) -> int:
        """The version that a stream has, with the events that wait."""
        row = self.connection.execute(_SERIES, [stream]).fetchone()
        return (row[0] if row else 0) + sum(event.stream == stream for event in self._pending)

    def _streams(self, after: str, below: str) -> list[str]:
        given = {"after": after, "below": below, "page": PAGE_STREAMS}
        return [stream for (stream,) in self.connection.execute(_STREAMS, given)]

    def _fill(self) -> None:
        """Take the values that were left out from the state before: of this chunk, or of the log."""
        states = self.last(wanted) if (wanted := {event.stream for event in self._pending if event.holes}) else {}
        for event in self._pending:
            if event.stream not in wanted:
                continue
            for name in event.holes:
                if name not in states.get(event.stream, {}):
                    raise Incomplete(event.stream, event.stream.partition("-")[0])
                event.data["columns"][name] = states[event.stream][name]
            if event.type == DELETED:
                states.pop(event.stream, None)
            else:
                states[event.stream] = event.data["columns"]

    def _append(self, events: list[Pending]) -> None:
        try:
            self._load([_batch(event) for event in events])
            self.counts.events += len(events)
        except DuplicateEvent:
            known = {i for (i,) in self.connection.execute(_STANDING, [[event.id for event in events]])}
            rest = [event for event in events if event.id not in known]
            if len(rest) == len(events):
                raise
            if rest:
                self._append(rest)
        except InvalidEvent as error:
            self._explain(events, error)
            raise

    def _load(self, batches: list[Batch]) -> None:
        """Append, whoever else does: each time that somebody was quicker in one of the streams, behind that."""
        while True:
            try:
                bulk_append(self.connection, batches, self.registry)
            except VersionConflict:
                self.alive()
            else:
                return

    def _explain(self, events: list[Pending], error: InvalidEvent) -> None:
        """Raise which row it is that no event can hold."""
        for event in events:
            try:
                self.registry.encode(event.type, event.data)
            except InvalidEvent:
                raise InvalidEvent(f"a row cannot be captured, {event.stream[:200]!r}: {error}", error.field) from error


def _batch(event: Pending) -> Batch:
    return event.stream, "any", (NewEvent(event.type, event.data, event.id),)
