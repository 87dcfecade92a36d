"""One term as a capture's leader: from taking the lease to losing it, in rounds.

A round is one of three: make the slot and read its snapshot; read a snapshot of tables that are new or changed, when
the stream has come to it; stream. Each ends with what it has done committed, and the next looks at everything anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final, Self

import psycopg
from prometheus_client import Gauge

from outbox.capture import registered, source
from outbox.capture.changes import Changes
from outbox.capture.registered import Captured, Standing
from outbox.capture.settings import CaptureSettings
from outbox.capture.snapshot import Snapshot, Tell
from outbox.capture.stream import Stream
from outbox.capture.table import Table, look
from outbox.capture.writer import Counts, Incomplete, Writer
from outbox.codec import Registry
from outbox.database import Connection, first_line
from outbox.errors import DatabaseError, Fenced
from outbox.logs import logger
from outbox.relay import slot as slots
from outbox.relay.replication import Replication, lsn_number, lsn_text

log = logger("outbox.capture")

SLOT_WAL_BYTES: Final = Gauge("outbox_capture_slot_wal_bytes", "Write-ahead log that a capture's slot keeps, in bytes.")
WATCH_EVERY_S: Final = 5.0
OPTIONS: Final = {"proto_version": "1"}
"""Whole transactions, in the order of their commits, with every value as text."""

_NOW: Final = "SELECT pg_current_wal_flush_lsn()::text"
_MARK: Final = "SELECT pg_logical_emit_message(true, 'outbox', '')"


@dataclass(slots=True)
class Leader:
    """Used by one thread. ``log``: an ordinary connection to the log, ``source_dsn``: where the tables are."""

    log: Connection
    source_dsn: str
    registry: Registry
    settings: CaptureSettings
    standing: Standing
    alive: Callable[[], None]
    stop: threading.Event
    tell: Tell
    counts: Counts = field(default_factory=Counts)
    _target: int | None = None
    _watched_at: float = 0.0
    _dropped: set[str] = field(default_factory=set)
    """Categories of tables that are warned of already."""

    def run(self, *, drain: bool) -> bool:
        """Lead until told to stop or nothing is captured any more; ``drain``: until all that is committed in the
        source when this begins is in the log. Returns whether it ended by itself."""
        named = source.names(self.log, self.standing.name)
        while not self.stop.is_set():
            with source.open_source(self.source_dsn) as connection:
                self._check(connection)
                tables = self._tables(connection)
                if not tables:
                    source.clear(connection, named)  # nobody would read the slot, which keeps the write-ahead log
                    return True
                if drain and self._target is None:
                    self._target = _all_by_now(connection)
                source.publish(connection, named.publication, [table for _, table in tables])
                try:
                    if self._round(connection, named, tables):
                        return True
                except Incomplete as error:
                    self._look_again(error)
        return False

    def _check(self, connection: Connection) -> None:
        source.check_able(connection)
        if source.identity(connection) != self.standing.source:
            raise registered.other_source(self.standing.name)

    def _round(self, connection: Connection, named: source.Names, tables: list[tuple[Captured, Table]]) -> bool:
        """One round; whether everything up to the drain's target is in the log with it."""
        if not self._usable(connection, named):
            self._begin(connection, named)
            return False
        unsettled = [c for c, table in tables if c.state != "streaming" or c.print != table.print]
        if unsettled:
            self._settle(connection, named, [c for c, _ in tables], unsettled)
            return False
        return self._stream(connection, named, [c for c, _ in tables])

    def _tables(self, connection: Connection) -> list[tuple[Captured, Table]]:
        """The capture's tables that are still there. Raises :class:`~outbox.errors.SettingsError` for one that cannot
        be captured any more."""
        found = []
        for captured in registered.tables(self.log, self.standing.name):
            table = look(connection, captured.relation)
            if table is None:
                if captured.category not in self._dropped:
                    log.warning("a captured table was dropped; its rows stay in the log", table=captured.name)
                self._dropped.add(captured.category)
            elif table.key != captured.key:
                raise registered.key_changed(captured.name, captured.key, table.key)
            else:
                found.append((captured, table))
        return found

    def _look_again(self, error: Incomplete) -> None:
        log.warning("all rows of a table are looked at again", reason=first_line(error))
        self.log.rollback()
        registered.set_state(self.log, self.standing.name, [error.category], "new")

    # ------------------------------------------------------------ the slot

    def _usable(self, connection: Connection, named: source.Names) -> bool:
        """Whether the slot gives everything behind the position. One that has confirmed more than the log has is the
        slot of a log that was since restored to an earlier moment; a source whose own log ends before the position was
        restored itself, and would give nothing until it comes there again. A slot of another name is from before the
        log was moved: the publication that has its name now is not in the part of the source's log that it gives."""
        slot = self.standing.slot
        slots.drop_before(connection, named.slot_prefix, self.standing.epoch, slot)
        if slot is None or not slot.startswith(named.slot_prefix) or not slots.usable(connection, slot):
            return False
        return slots.confirmed(connection, slot) <= self.standing.lsn <= _now(connection)

    def _begin(self, connection: Connection, named: source.Names) -> None:
        """Make a slot, and bring the log to its snapshot.

        1. Drop a slot that is of no more use. 2. Make the new one. A crash here leaves one that no row names; the next
        leader drops it. 3. Write down the slot, its position, and that no table's rows are in the log as of then. From
        here on a crash leaves tables that are new. 4. Look at all rows, as the slot's snapshot sees them.
        """
        if self.standing.slot is not None:
            log.warning(
                "the slot is lost, ahead of the log or of a log that was moved, or the source went back: all rows are"
                " looked at again",
                slot=self.standing.slot,
            )
            slots.drop(connection, self.standing.slot)
        slot = named.slot(self.standing.epoch)
        slots.drop(connection, slot)
        with ExitStack() as seen:
            with source.exported(self.source_dsn, connection, slot, self.stop, self.alive, temporary=False) as made:
                if made is None:
                    return
                seeing = seen.enter_context(source.at_snapshot(self.source_dsn, made.snapshot))
            try:
                everything = self._use_slot(slot, made.lsn)
            except Fenced:  # by a new leader, who would drop it, or by the end of the capture, behind which nobody does
                slots.drop(connection, slot)
                raise
            self.standing = replace(self.standing, slot=slot, lsn=made.lsn)
            log.info("made a slot", slot=slot, lsn=lsn_text(made.lsn))
            self._snapshot(seeing, made.lsn, everything)

    def _use_slot(self, slot: str, lsn: int) -> list[Captured]:
        with self.log.transaction():
            registered.use_slot(self.log, self.standing, slot, lsn)
            everything = registered.tables(self.log, self.standing.name)
            registered.set_state(self.log, self.standing.name, [c.category for c in everything], "new")
        return everything

    # -------------------------------------------------------- the snapshot

    def _settle(
        self, connection: Connection, named: source.Names, tables: list[Captured], unsettled: list[Captured]
    ) -> None:
        """Read tables that are new or changed from a snapshot, at the very place of the stream that it belongs to.

        1. A slot that lasts for this moment only gives a snapshot and its place. 2. Stream up to that place: changed
        tables with the others, new ones not at all, since the snapshot has them. 3. Look at all their rows.
        """
        name = f"{named.slot_prefix}snapshot_{self.standing.epoch}"
        with ExitStack() as seen:
            with source.exported(self.source_dsn, connection, name, self.stop, self.alive, temporary=True) as made:
                if made is None:
                    return
                seeing = seen.enter_context(source.at_snapshot(self.source_dsn, made.snapshot))
            if self._catch_up(connection, named, tables, made.lsn):
                self._snapshot(seeing, max(made.lsn, self.standing.lsn), unsettled)

    def _snapshot(self, seeing: Connection, lsn: int, tables: Sequence[Captured]) -> None:
        snapshot = Snapshot(seeing, self._writer(), self._origin, lsn, self.tell)
        for captured in tables:
            if look(seeing, captured.relation) is None:
                continue
            snapshot.settle(captured)
            log.info("all rows are in the log", table=captured.name, lsn=lsn_text(lsn))
        self.standing = replace(self.standing, lsn=lsn)

    # ---------------------------------------------------------- the stream

    def _catch_up(self, connection: Connection, named: source.Names, tables: list[Captured], until: int) -> bool:
        """Stream up to a place; False if that was interrupted, and must be begun again."""
        with self._open(connection, named, tables, until) as opened:
            stream = opened.stream
            while not self.stop.is_set() and not opened.changes.again:
                self.alive()
                count = stream.step()
                if stream.done:
                    return True
                if not count:
                    stream.wait(self.settings.sleep_s)
        return False

    def _stream(self, connection: Connection, named: source.Names, tables: list[Captured]) -> bool:
        """Stream until a table is added, dropped or changed; True if the drain's target was passed."""
        with self._open(connection, named, tables, None) as opened:
            stream, looked_at = opened.stream, time.monotonic()
            watch = slots.Watch(connection, self.settings.slot_wal_warn_bytes, SLOT_WAL_BYTES)
            while not self.stop.is_set() and not opened.changes.again:
                self.alive()
                count = stream.step()
                if self._target is not None and stream.passed(self._target):
                    return True
                if time.monotonic() - looked_at > self.settings.look_s and not stream.amid:
                    looked_at = time.monotonic()
                    self._watch(watch)
                    if self._other(connection, tables):
                        break
                if not count:
                    stream.wait(self.settings.sleep_s)
        return False

    def _other(self, connection: Connection, tables: list[Captured]) -> bool:
        """Whether there is more to do than to stream these tables."""
        now = self._tables(connection)
        return [c for c, _ in now] != tables or any(c.print != table.print for c, table in now)

    def _watch(self, watch: slots.Watch) -> None:
        if self.standing.slot is not None and time.monotonic() - self._watched_at > WATCH_EVERY_S:
            self._watched_at = time.monotonic()
            watch.look(self.standing.slot)

    def _open(self, connection: Connection, named: source.Names, tables: list[Captured], until: int | None) -> _Opened:
        slot = self.standing.slot or ""
        slots.release(connection, slot)
        replication = Replication(source.session(self.source_dsn), connection, source.WANTED)
        options = OPTIONS | {"publication_names": f'"{named.publication}"'}
        try:
            replication.start(slot, self.standing.lsn, options)
        except psycopg.Error as error:
            replication.close()
            raise DatabaseError(f"slot {slot!r} cannot be streamed from: {first_line(error)}") from error
        writer = self._writer()
        changes = Changes(writer, connection, self._origin, {captured.relation: captured for captured in tables})
        stream = Stream(replication, changes, writer, self.standing.lsn, until)

        def alive() -> None:
            self.alive()
            stream.alive()

        writer.alive = alive
        return _Opened(self, replication, changes, stream)

    def _writer(self) -> Writer:
        return Writer(self.log, self.registry, self.standing, self.alive, self.counts)

    @property
    def _origin(self) -> str:
        """With the slot: a source that went back, or whose stand-by took over, comes to the same positions again."""
        return f"{self.standing.source}/{self.standing.name}/{self.standing.slot}"


@dataclass(slots=True)
class _Opened:
    """A stream for the time of a round. What it reached is where the next one begins."""

    leader: Leader
    replication: Replication
    changes: Changes
    stream: Stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.replication.close()
        if kind is None:
            self.leader.standing = replace(self.leader.standing, lsn=self.stream.committed)


def _now(connection: Connection) -> int:
    row = connection.execute(_NOW).fetchone()
    return lsn_number(row[0]) if row else 0


def _all_by_now(connection: Connection) -> int:
    """A place behind every commit that anybody can see, on disk, which alone is streamed. With synchronous_commit =
    off commits are seen before they are there: a transaction of our own that waits for its own takes them along."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = local")
        connection.execute(_MARK)
    return _now(connection)
