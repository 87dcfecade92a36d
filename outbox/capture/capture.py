"""Capture of ordinary tables: their committed changes become events of streams ``TABLE-<primary key>``.

One leader a capture, any number of stand-bys. What a capture is and which tables it has stands in the log's database
(:mod:`outbox.capture.registered`), so a process needs no more than the name, and the source's address if that is
another database.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import psycopg

from outbox.capture import registered, source
from outbox.capture.leader import Leader
from outbox.capture.registered import Forgotten
from outbox.capture.settings import CaptureSettings
from outbox.capture.snapshot import Tell
from outbox.capture.table import find, look
from outbox.capture.writer import Counts
from outbox.codec import Registry
from outbox.database import Connection, check_migrated, connected, first_line, leading
from outbox.errors import DatabaseError, Fenced, SettingsError
from outbox.garbage import collect_ended
from outbox.log.identity import check_identity
from outbox.logs import logger
from outbox.relay.lease import Keeper, Lease, new_holder, wait_for
from outbox.rests import Rests

__all__ = ["Capture", "CaptureSettings"]

log = logger("outbox.capture")


def _silent(done: int, total: int, detail: str) -> None:
    del done, total, detail


class Capture:
    """Runs until told to stop, through outages of either database. ``source_dsn``: None is the log's own database."""

    def __init__(
        self,
        dsn: str,
        registry: Registry,
        settings: CaptureSettings | None = None,
        *,
        source_dsn: str | None = None,
        tell: Tell = _silent,
    ) -> None:
        self._dsn, self._source_dsn = dsn, source_dsn or dsn
        self._registry = registry
        self._settings = settings or CaptureSettings()
        self._tell = tell
        self._holder = new_holder()
        self.counts = Counts()
        self._was_there = False
        """Whether there was a capture since this began."""

    def add(self, tables: Sequence[str]) -> list[str]:
        """Register tables, named as in SQL; a process that runs takes them in by itself. Returns their categories.

        Raises :class:`~outbox.errors.SettingsError` for a table or a database that cannot be captured; then none of
        these is.
        """
        with connected(self._source_dsn, client_encoding="UTF8") as reading, connected(self._dsn) as writing:
            check_migrated(writing)
            source.check_able(reading)
            found = [find(reading, name) for name in tables]
            registered.register(writing, self._settings.name, source.identity(reading), found)
            return [table.category for table in found]

    def categories(self) -> list[str]:
        """What is captured."""
        with connected(self._dsn) as connection:
            return [c.category for c in registered.tables(connection, self._settings.name)]

    def again(self, category: str) -> None:
        """Have all rows of a table looked at again and the log put right where it differs.

        Raises :class:`~outbox.errors.SettingsError` if there is no such table.
        """
        with connected(self._dsn) as connection:
            if not registered.set_state(connection, self._settings.name, [category], "changed"):
                raise self._unknown(connection, category)

    def drop(self, category: str) -> None:
        """Stop to capture a table; with the last one the slot and the publication go. Its events stay in the log.

        Raises :class:`~outbox.errors.SettingsError` if there is no such table.
        """
        with connected(self._dsn) as connection, connected(self._source_dsn) as reading:
            named = source.names(connection, self._settings.name)
            self._check_source(connection, reading)
            if not registered.remove(connection, self._settings.name, category):
                raise self._unknown(connection, category)
            left = registered.tables(connection, self._settings.name)
            tables = [table for c in left if (table := look(reading, c.relation)) is not None]
            if tables:
                source.publish(reading, named.publication, tables)
            else:
                source.clear(reading, named)

    def forget(self) -> Forgotten:
        """Give the whole capture up without asking its source, which was moved or is gone. Its events stay; the tables
        may be captured again from wherever they are now, and are then compared with the log.

        Raises :class:`~outbox.errors.SettingsError` if a process leads it, or there is no such capture.
        """
        with connected(self._dsn) as connection:
            check_migrated(connection)
            return registered.forget(connection, self._settings.name, self._settings.lease)

    def run(self, stop: threading.Event, *, drain: bool = False) -> None:
        """Lead whenever the lease is free, until told to stop or no table is captured any more.

        Failures of a database are logged and tried again, ever less often; nothing else is caught
        (:class:`~outbox.errors.LogWentBack` ends it until a reconcile). ``drain``: wait for the lease,
        return once everything that was committed in the source is in the log, and raise the first failure instead.
        """
        rests = Rests(self._settings.retry_s)
        while not stop.is_set():
            rests.begin()
            try:
                if self._attempt(stop, drain=drain):
                    return
            except Fenced as error:
                log.info("no longer the leader", reason=first_line(error))
            except (DatabaseError, psycopg.Error) as error:
                if drain:
                    raise
                rest_s = rests.failed()
                log.warning("will try again", error=first_line(error), in_s=rest_s)
                stop.wait(rest_s)
            collect_ended()

    def _attempt(self, stop: threading.Event, *, drain: bool) -> bool:
        """Wait for the lease and lead; True if that ended by itself."""
        with connected(self._dsn) as connection:
            check_migrated(connection)
            check_identity(connection)
            self._was_there |= registered.source_of(connection, self._settings.name) is not None
            lease = wait_for(connection, self._settings.lease, self._holder, self._settings.lease_s, stop)
            return lease is not None and self._lead(connection, lease, stop, drain=drain)

    def _lead(self, connection: Connection, lease: Lease, stop: threading.Event, *, drain: bool) -> bool:
        with ExitStack() as stack:
            stack.callback(lease.release, connection)  # behind the end of its keeper, which would renew it once more
            standing = registered.begin(connection, self._settings.name, lease.epoch)
            if standing is None:
                return self._without_tables(connection, lease)
            log.info("leading", capture=standing.name, epoch=standing.epoch)
            writing = stack.enter_context(leading(self._dsn))
            keeper = stack.enter_context(Keeper(self._dsn, lease))
            leader = Leader(
                writing, self._source_dsn, self._registry, self._settings, standing, keeper.check, stop, self._tell,
                self.counts,
            )  # fmt: skip
            return leader.run(drain=drain)

    def _without_tables(self, connection: Connection, lease: Lease) -> bool:
        """Whether that is an end, as all tables were let go meanwhile; else raise what it is."""
        if registered.source_of(connection, self._settings.name) is not None:
            raise Fenced(f"{lease.name!r}: another process has taken over from epoch {lease.epoch}")
        if not self._was_there:
            raise SettingsError(f"capture {self._settings.name!r} has no tables: outbox capture TABLE...")
        log.info("no table is captured any more", capture=self._settings.name)
        self._clear(connection)
        return True

    def _clear(self, connection: Connection) -> None:
        """Whoever let the last table go has cleared the source, but a leader that had not seen it yet may have
        published the table once more behind that."""
        try:
            with connected(self._source_dsn) as reading:
                source.clear(reading, source.names(connection, self._settings.name))
        except (DatabaseError, psycopg.Error) as error:
            log.warning("the source may still have the capture's publication", reason=first_line(error))

    def _check_source(self, connection: Connection, reading: Connection) -> None:
        known = registered.source_of(connection, self._settings.name)
        if known is not None and known != source.identity(reading):
            raise registered.other_source(self._settings.name)

    def _unknown(self, connection: Connection, category: str) -> SettingsError:
        known = ", ".join(c.category for c in registered.tables(connection, self._settings.name)) or "nothing"
        return SettingsError(f"capture {self._settings.name!r} has no {category!r}; it captures {known}")
