"""The relay: carries the outbox to the broker. One leader, one cursor, any number of stand-bys.

At least once: a row is published before the cursor passes it. What a crash leaves between the steps of
:meth:`Leader.step` is written there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import psycopg
import structlog

from outbox.broker.protocol import Broker, Producer
from outbox.database import Connection, check_migrated, connected, first_line
from outbox.errors import BrokerUnavailable, DatabaseError, Fenced, MessageRefused
from outbox.metrics import RELAY_ERRORS, RELAY_LEADER, RELAY_PUBLISHED
from outbox.relay import cursor as cursors
from outbox.relay.cursor import Cursor
from outbox.relay.lease import Lease, new_holder, take
from outbox.relay.parking import Parking
from outbox.relay.poll import OutboxRow, Page, PollEngine
from outbox.relay.ring import PART_ROWS, trim

log = structlog.get_logger("outbox.relay")

TRIM_EVERY_S: Final = 30.0
"""Even a quiet outbox is emptied after a burst."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """``name``: relays of one name share one lease and cursor."""

    name: str = "relay"
    prefix: str = "outbox"
    lease_s: float = 3.0
    page_min: int = 200
    page_max: int = 10_000
    sleep_min_s: float = 0.001
    sleep_max_s: float = 0.05
    retry_s: float = 0.5


class Engine(Protocol):
    """How rows leave PostgreSQL."""

    def read(self, cursor: Cursor, limit: int) -> Page: ...
    def close(self) -> None: ...


class Leader:
    """One term as the leader: from taking the lease to losing it."""

    def __init__(
        self, connection: Connection, engine: Engine, producer: Producer, lease: Lease, settings: RelaySettings
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._producer = producer
        self._lease = lease
        self._settings = settings
        self._cursor = cursors.load(connection, lease.name, lease.epoch)
        self._written_at = time.monotonic()
        self._parking = Parking(connection, lease.name)
        self._limit = settings.page_min
        self._since_trim = 0
        self._trimmed_at = time.monotonic()

    def step(self) -> int:
        """Publish one page and return its number of rows.

        1. Read the next page after the cursor. A crash here leaves nothing.
        2. Publish it and wait until the broker has it all. A crash here: it is published again later,
           in the same order, and consumers know each event by its stream and version.
        3. Advance the cursor, the map of what is published and the lease, in one statement that takes
           effect only for the leader's epoch. A crash after it leaves nothing to do.
        """
        page = self._engine.read(self._cursor, self._limit)
        published = self._publish(list(page.rows))
        if page.rows or self._due():
            self._advance(page.cursor, published)
        self._cursor = page.cursor
        self._adapt(len(page.rows))
        self._trim(len(page.rows))
        return len(page.rows)

    def _publish(self, rows: list[OutboxRow]) -> dict[tuple[str, int], int]:
        published: dict[tuple[str, int], int] = {}
        while rows:
            free = [r for r in rows if r not in self._parking]
            for row in rows if len(free) < len(rows) else ():
                if row in self._parking:
                    self._parking.park(row)
            try:
                sent = self._producer.publish([r.message for r in free])
                published.update(dict(sent))
                RELAY_PUBLISHED.inc(len(free))
                return published
            except MessageRefused as refused:
                # What came before it is acknowledged, or is published again: both are "at least once".
                self._parking.park(free[refused.index], first_line(refused))
                log.warning("parked", key=free[refused.index].message.key, reason=first_line(refused))
                rows = free
        return published

    def _advance(self, cursor: Cursor, published: dict[tuple[str, int], int]) -> None:
        cursors.advance(
            self._connection, self._lease.name, self._lease.epoch, cursor, published, self._settings.lease_s
        )
        self._written_at = time.monotonic()

    def _due(self) -> bool:
        """Idle windows are written down only to keep the lease."""
        return time.monotonic() - self._written_at > self._settings.lease_s / 3

    def _adapt(self, rows: int) -> None:
        if rows == self._limit:
            self._limit = min(self._limit * 2, self._settings.page_max)
        elif rows < self._limit // 4:
            self._limit = max(self._limit // 2, self._settings.page_min)

    def _trim(self, rows: int) -> None:
        self._since_trim += rows
        overdue = self._since_trim and time.monotonic() - self._trimmed_at > TRIM_EVERY_S
        if self._cursor.open or not (self._since_trim >= PART_ROWS or overdue):
            return
        self._advance(self._cursor, {})
        trim(self._connection, self._cursor)
        self._since_trim, self._trimmed_at = 0, time.monotonic()


class Relay:
    """Runs until told to stop, through broker and database outages."""

    def __init__(self, dsn: str, broker: Callable[[], Broker], settings: RelaySettings | None = None) -> None:
        self._dsn = dsn
        self._broker = broker
        self._settings = settings or RelaySettings()
        self._holder = new_holder()

    def run(self, stop: threading.Event, *, drain: bool = False) -> None:
        """Lead whenever the lease is free. ``drain``: return once nothing is left to publish.

        Failures of the broker or the database are logged and tried again; nothing else is caught.
        """
        while not stop.is_set():
            try:
                with connected(self._dsn) as connection:
                    check_migrated(connection)
                    lease = take(connection, self._settings.name, self._holder, self._settings.lease_s)
                    if lease is None:
                        stop.wait(self._settings.lease_s / 6)
                        continue
                    if self._lead(connection, lease, stop, drain=drain):
                        return
            except Fenced as error:
                log.info("no longer the leader", reason=first_line(error))
            except (BrokerUnavailable, DatabaseError, psycopg.Error) as error:
                if drain:
                    raise
                RELAY_ERRORS.inc()
                log.warning("will try again", error=first_line(error), in_s=self._settings.retry_s)
                stop.wait(self._settings.retry_s)

    def _lead(self, connection: Connection, lease: Lease, stop: threading.Event, *, drain: bool) -> bool:
        """One term; True if drained."""
        log.info("leading", epoch=lease.epoch)
        RELAY_LEADER.set(1)
        broker = self._broker()
        try:
            with connected(self._dsn, enable_seqscan="off") as reading:
                engine = PollEngine(reading, self._settings.prefix)
                producer = broker.producer()
                try:
                    leader = Leader(connection, engine, producer, lease, self._settings)
                    return self._turn(leader, stop, drain=drain)
                finally:
                    engine.close()
                    producer.close()
        finally:
            RELAY_LEADER.set(0)
            broker.close()
            lease.release(connection)

    def _turn(self, leader: Leader, stop: threading.Event, *, drain: bool) -> bool:
        sleep_s = self._settings.sleep_min_s
        while not stop.is_set():
            if leader.step():
                sleep_s = self._settings.sleep_min_s
            elif drain:
                return True
            else:
                stop.wait(sleep_s)
                sleep_s = min(sleep_s * 2, self._settings.sleep_max_s)
        return False
