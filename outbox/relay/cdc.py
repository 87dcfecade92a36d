"""The cdc engine: reads the outbox out of PostgreSQL's write-ahead log, through a slot of logical replication.

Transactions come in the order of their commits, and version n + 1 of a stream can only be appended once version n has
committed; so the order of a stream is kept. A transaction is published only once other sessions see it, which is a
moment after its commit is in the log: whoever is told of an event finds it.

Where it stands is written down twice, and either is enough. ``lsn`` is for the slot. ``a``, the snapshot, is the poll
engine's: transactions it sees are passed by if the slot gives them again, and it is what a new slot is joined to. While
a slot is being made, which takes until every transaction that is open then has ended, this engine polls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from outbox.database import Connection, first_line
from outbox.errors import DatabaseError
from outbox.logs import logger
from outbox.relay import slot as slots
from outbox.relay.cdc_rows import Assembly, Committed
from outbox.relay.cursor import IN_PROGRESS_MAX, Cursor, Snapshot
from outbox.relay.lease import Lease
from outbox.relay.poll import Page, PollEngine
from outbox.relay.replication import NewSlot, Replication, lsn_number, lsn_text
from outbox.relay.rows import OutboxRow
from outbox.relay.settings import RelaySettings

log = logger("outbox.relay")

OPTIONS: Final = {
    "proto_version": "2",
    "publication_names": f'"{slots.PUBLICATION}"',
    "binary": "true",
    "streaming": "on",
}
MESSAGES_A_READ: Final = 50_000
"""A bound on one read, so that the leader goes on to live while a huge transaction passes that is not wanted here."""
PAGE_BYTES: Final = 16 << 20
MARK_EVERY_S: Final = 1.0
"""How often an idle engine moves ``a`` on."""
WATCH_EVERY_S: Final = 5.0
MAKE_AGAIN_S: Final = 10.0
"""Pause before asking for a slot again when the server has no more of them."""
HELD_S: Final = 0.001
"""Pause before asking again whether a commit that is in the log is visible: mostly it is by then."""

_NOW: Final = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
# A commit is in the log a moment before it is visible: whether all that the first one sees is visible here.
_COVERED: Final = """
SELECT pg_snapshot_xmax(now) >= pg_snapshot_xmax(seen)
       AND NOT EXISTS (SELECT FROM pg_snapshot_xip(now) x WHERE pg_visible_in_snapshot(x, seen))
FROM (SELECT pg_current_snapshot() AS now, %s::pg_snapshot AS seen) s
"""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Once everything that committed before ``lsn`` is published, so is everything that ``seen`` sees."""

    seen: Snapshot
    lsn: int


@dataclass(slots=True)
class _Batch:
    """What one read has gathered; ``lsn`` is where it ends."""

    lsn: int
    rows: list[OutboxRow] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)


class CdcEngine:
    """Reads pages for one term of a leader. ``connection`` is as the poll engine's. Used by one thread."""

    def __init__(self, dsn: str, connection: Connection, lease: Lease, settings: RelaySettings) -> None:
        """Raises :class:`~outbox.errors.SettingsError` if this server or role cannot be streamed from."""
        slots.check_able(connection)
        self._connection, self._lease = connection, lease
        self._poll = PollEngine(connection, settings.prefix)
        self._replication = Replication(dsn, connection)
        self._assembly = Assembly(settings.prefix)
        self._watch = slots.Watch(connection, settings.slot_wal_warn_bytes)
        self._slot: str | None = None
        """The slot that is streamed from, or being made."""
        self._making = self._streaming = False
        self._make_again_at: float | None = None
        self._given: Page | None = None
        self._seen: tuple[NewSlot, Snapshot] | None = None
        self._held: _Batch | None = None
        self._whole: Committed | None = None
        self._more = False
        self._mark: _Mark | None = None
        self._unmarked = False
        self._marked_at = self._watched_at = time.monotonic()

    def read(self, cursor: Cursor, limit: int) -> Page:
        """The next page after ``cursor``; a transaction is never cut in two but for one too large to be held.

        Raises ``psycopg.Error`` or :class:`~outbox.errors.DatabaseError`, after which the engine is of no more use.
        """
        if self._given is None or cursor == self._given.cursor:
            self._given = self._next(cursor, limit)
        return self._given  # the same page again if it has not been published

    def _next(self, cursor: Cursor, limit: int) -> Page:
        if cursor.open:
            return self._poll.read(cursor, limit)
        if self._slot is None:
            self._open(cursor)
        self._look()
        if self._making:
            return self._bridge(cursor, limit)
        if not self._streaming:
            self._start(cursor)
        if self._whole is not None and self._held is None:
            return self._read_whole(self._whole, cursor, limit)
        return self._read_stream(cursor, limit)

    def written(self, cursor: Cursor) -> None:
        """Let the server forget what the cursor, now committed, has passed."""
        if self._streaming and cursor.slot == self._slot:
            self._replication.confirm(cursor.lsn)

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """Wait for the stream, unless there is more at hand already."""
        if self._held is not None:
            stop.wait(HELD_S)
        elif not self._streaming:
            stop.wait(timeout_s)
        elif not self._more:
            self._replication.wait(timeout_s)

    def close(self) -> None:
        """Close the stream; the slot stays and keeps the log for the next leader."""
        self._poll.close()
        self._replication.close()

    # ------------------------------------------------------------ the slot

    def _open(self, cursor: Cursor) -> None:
        """Go on with the cursor's slot, or begin to make a new one if it is gone or has lost part of its log.

        What a crash leaves: a slot no cursor names, which the next leader drops; a cursor that names a slot, whose
        window up to the slot's beginning is published first.
        """
        keep = cursor.slot if cursor.slot is not None and slots.usable(self._connection, cursor.slot) else None
        slots.drop_older(self._connection, self._lease.name, self._lease.epoch, keep)
        self._slot = keep
        if keep is None:
            self._make()

    def _make(self) -> None:
        self._slot = slots.name_of(self._connection, self._lease.name, self._lease.epoch)
        log.info("making a slot; polling until it is there", slot=self._slot)
        self._replication.make_slot(self._slot)
        self._making = True

    def _start(self, cursor: Cursor) -> None:
        slot = self._slot or ""
        slots.release(self._connection, slot)
        try:
            self._replication.start(slot, cursor.lsn, OPTIONS)
        except psycopg.Error as error:
            raise DatabaseError(f"slot {slot!r} cannot be streamed from: {first_line(error)}") from error
        self._streaming = True
        log.info("streaming", slot=slot, lsn=lsn_text(cursor.lsn))

    def _bridge(self, cursor: Cursor, limit: int) -> Page:
        """Poll until the slot is made, then up to what it does not give; then the stream begins.

        1. Another page is polled. A crash here leaves nothing.
        2. The slot is there: the cursor names it, and its window ends with all that committed before the slot begins.
           A crash before that is written leaves a slot no cursor names; after it, the window is published first.
        3. The window is published, as any. What was polled meanwhile and the slot gives too is passed by.
        """
        if self._seen is None and (made := self._made()) is not None:
            self._seen = made, self._imported(made.snapshot)
        if self._seen is None or not self._covered(self._seen[1]):
            return self._poll.read(cursor, limit)
        (made, seen), self._seen, self._making = self._seen, None, False
        window = Cursor(cursor.b, cursor.b.union(seen), 0, made.name, made.lsn)
        return Page([], window, settle=True)

    def _made(self) -> NewSlot | None:
        """The slot once it is made. While the server has none to give, polling goes on, and it is asked again."""
        if self._make_again_at is not None and time.monotonic() > self._make_again_at:
            self._make_again_at = None
            self._make()
        try:
            return self._replication.made()
        except psycopg.errors.ConfigurationLimitExceeded as error:
            log.warning("no slot can be made; polling on", reason=first_line(error), again_in_s=MAKE_AGAIN_S)
            self._make_again_at = time.monotonic() + MAKE_AGAIN_S
            return None

    def _imported(self, exported: str) -> Snapshot:
        """The snapshot that another connection has exported."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported)))
            return Snapshot.exported(self._ask("SELECT pg_current_snapshot()::text")[0])

    def _covered(self, seen: Snapshot) -> bool:
        return bool(self._ask(_COVERED, seen.text)[0])

    def _look(self) -> None:
        if self._slot is not None and not self._making and time.monotonic() - self._watched_at > WATCH_EVERY_S:
            self._watched_at = time.monotonic()
            self._watch.look(self._slot)

    # ---------------------------------------------------------- the stream

    def _read_stream(self, cursor: Cursor, limit: int) -> Page:
        try:
            batch = self._held or self._gather(cursor, limit)
        except psycopg.errors.InternalError_ as error:
            raise self._undecodable(error) from error
        self._held = None
        if batch.rows and not self._visible(batch.xids):
            self._held = batch
            return Page([], cursor)
        return self._page(cursor, batch)

    def _undecodable(self, error: psycopg.Error) -> DatabaseError:
        """The server fails at a place of its log as often as it is asked: without the slot, the next term makes
        another and bridges to it. Seen of PostgreSQL 18.4, of a slot made while a table was: "could not map filenumber
        ... to relation OID"."""
        slot = self._slot or ""
        self._replication.close()
        slots.drop(self._connection, slot)
        return DatabaseError(
            f"PostgreSQL cannot decode its log for slot {slot!r}, which is made anew: {first_line(error)}"
        )

    def _gather(self, cursor: Cursor, limit: int) -> _Batch:
        """Whole transactions, until there are ``limit`` rows or nothing more has come."""
        batch, taken_bytes = _Batch(cursor.lsn), 0
        take, receive, seen = self._assembly.take, self._replication.receive, cursor.a.sight()
        for _ in range(MESSAGES_A_READ):
            if len(batch.rows) >= limit or taken_bytes >= PAGE_BYTES or self._whole is not None:
                break
            message = receive()
            if message is None:
                self._more = False
                # What the server calls reached it has sent whole: a commit is sent before its record counts as read.
                batch.lsn = max(batch.lsn, self._replication.reached)
                return batch
            taken_bytes += len(message)
            committed = take(message)
            if committed is not None:
                self._take(batch, committed, cursor, seen)
        self._more = True
        return batch

    def _take(self, batch: _Batch, committed: Committed, cursor: Cursor, seen: Callable[[int], bool]) -> None:
        lsn, xid, rows = committed
        if xid is None or seen(xid):
            batch.lsn = lsn
        elif rows is None:
            self._whole = committed
        else:
            batch.rows += [row for row in rows if row.seq > cursor.last] if xid == cursor.part else rows
            batch.xids.append(xid)
            batch.lsn = lsn

    def _read_whole(self, whole: Committed, cursor: Cursor, limit: int) -> Page:
        """A page of a transaction too large to be held: a window of the poll engine's that holds nothing else."""
        xid = whole.xid or 0
        if cursor.part != xid and not self._visible([xid]):
            return Page([], cursor)
        last = cursor.last if cursor.part == xid else 0
        page = self._poll.window(Cursor(Snapshot.of(xid, ()), Snapshot.of(xid + 1, ()), last), limit)
        if page.cursor.open:
            return Page(page.rows, replace(cursor, part=xid, last=page.cursor.last))
        self._whole = None
        ended = self._page(cursor, _Batch(whole.lsn, list(page.rows), [xid]))
        return replace(ended, settle=True)

    def _page(self, cursor: Cursor, batch: _Batch) -> Page:
        a = cursor.a.including(batch.xids, IN_PROGRESS_MAX) if batch.xids else cursor.a
        passed = self._mark is not None and batch.lsn >= self._mark.lsn
        if self._mark is not None and passed:
            a, self._mark = a.union(self._mark.seen), None
        marked = not batch.rows and self._mark_again()
        if batch.xids:
            after = Cursor(a, a, 0, self._slot, batch.lsn)
        else:
            after = replace(cursor, a=a, b=a, slot=self._slot, lsn=batch.lsn)
        return Page(batch.rows, after, settle=passed or marked)

    # ----------------------------------------------------- what others see

    def _visible(self, xids: list[int]) -> bool:
        """Whether other sessions see these transactions. The same look makes a mark, if none is waited for."""
        mark = self._look_round()
        if not all(map(mark.seen.sight(), xids)):
            return False
        self._unmarked = self._mark is not None
        self._mark = self._mark or mark
        return True

    def _mark_again(self) -> bool:
        """When idle: whether a mark was made. The cursor is then written, which brings the log past the mark."""
        if self._mark is not None:
            return False
        if not self._unmarked and time.monotonic() - self._marked_at < MARK_EVERY_S:
            return False
        self._unmarked, self._mark = False, self._look_round()
        return True

    def _look_round(self) -> _Mark:
        seen, lsn = self._ask(_NOW)
        self._marked_at = time.monotonic()
        return _Mark(Snapshot(seen), lsn_number(lsn))

    def _ask(self, query: Any, *parameters: Any) -> tuple[Any, ...]:
        row = self._connection.execute(query, parameters or None).fetchone()
        if row is None:
            raise DatabaseError("PostgreSQL gave no answer to a query that always has one")
        return row
