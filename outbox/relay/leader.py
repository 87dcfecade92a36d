"""One term as the leader: page after page, from taking the lease to losing it.

At least once: a row is published before the cursor passes it. What a crash leaves between the steps of
:meth:`Leader.step` is written there. Exactly once is :mod:`outbox.relay.exactly_once`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from traceback import clear_frames
from typing import Final

from outbox.broker.protocol import Places, Producer, TopicPartition
from outbox.database import Connection, first_line
from outbox.errors import MessageRefused
from outbox.logs import logger
from outbox.metrics import RELAY_PUBLISHED
from outbox.relay import cursor as cursors
from outbox.relay.ahead import ReadAhead
from outbox.relay.cursor import Cursor
from outbox.relay.horizon import Horizon
from outbox.relay.lease import Lease
from outbox.relay.parking import REDRIVE_ROWS, Key, Parking
from outbox.relay.poll import Page
from outbox.relay.ring import PART_ROWS, trim
from outbox.relay.rows import OutboxRow
from outbox.relay.settings import RelaySettings

log = logger("outbox.relay")

TRIM_EVERY_S: Final = 30.0
"""Even a quiet outbox is emptied after a burst."""

REDRIVE_EVERY_S: Final = 1.0
"""How soon a parked key that somebody asked for is tried again."""

REDRIVE_SHARE: Final = 20
"""To look for such keys takes longer the more are parked: then so many times as long goes by before the next look."""

LASTING_EVERY_S: Final = 1.0
"""How often the cursor's commit waits for the disk. In between, a crash of PostgreSQL may take back what was written
since: so much is published again."""


@dataclass(frozen=True, slots=True)
class Again:
    """What became of a parked key's rows: those published now, and the one refused once more, with the reason."""

    rows: Sequence[OutboxRow]
    published: Places
    refused: tuple[OutboxRow, str] | None = None


class Leader:
    """Publishes what comes after its cursor. Used by one thread."""

    def __init__(
        self,
        connection: Connection,
        engine: ReadAhead,
        producer: Producer,
        lease: Lease,
        settings: RelaySettings,
        horizon: Horizon | None = None,
        going_on: Callable[[], None] = lambda: None,
    ) -> None:
        """``horizon`` is asked about each topic before the first event goes there; None: nobody is asked.

        ``going_on`` is called in the midst of a step that gets on, and may raise: each row that is refused may take the
        broker seconds to find, and of a page all may be.
        """
        self._connection = connection
        self._engine = engine
        self._producer = producer
        self._lease = lease
        self._settings = settings
        self._horizon = horizon
        self._going_on = going_on
        self._cursor = cursors.load(connection, lease.name, lease.epoch)
        self._parking = Parking(connection, lease.name, settings.prefix)
        self._limit = settings.page_min
        self._since_trim = 1  # what an earlier term left is trimmed too
        self._written_at = self._trimmed_at = time.monotonic()
        self._lasting_at = -math.inf
        self._redrive_at = -math.inf  # a relay that only drains is to try what somebody asked for, too

    def step(self) -> int:
        """Publish one page and return its number of rows.

        Raises :class:`~outbox.errors.Fenced`, or :class:`~outbox.errors.LogWentBack` before it publishes to a topic
        that holds events which the log lacks.

        1. Read the next page after the cursor, and begin to read the one after it if there is more. A crash here
           leaves nothing.
        2. Publish it and wait until the broker has it all. A crash here: it is published again later,
           in the same order, and consumers know each event by its stream and version.
        3. Advance the cursor, the map of what is published and the lease, and write down what is parked, in
           one transaction that takes effect only for the leader's epoch. A crash after it leaves nothing to do. Only
           now and then it is waited for until it is on disk: a crash of PostgreSQL itself may undo it, and the pages
           since the last one that was waited for are published again. The epoch cannot be undone, the lease was
           taken by a commit that was waited for.
        """
        page = self._engine.read(self._cursor, self._limit)
        if self._adapt(len(page.rows)):
            self._engine.begin(page, self._limit)
        self._ask(page.rows)
        published = self._publish(page)
        if page.rows or page.settle or self._due():
            lasting = self._lasting()
            self._advance(page.cursor, published, lasting=lasting)
            if lasting:
                self._engine.written(page.cursor)
        self._cursor = page.cursor
        self._trim(len(page.rows))
        return len(page.rows) + self._redrive()

    def _ask(self, rows: Sequence[OutboxRow]) -> None:
        """Of topics of events: in others there may be messages of anybody's."""
        if self._horizon is not None:
            self._horizon.check_topics({row.topic for row in rows if row.position is not None})

    def _publish(self, page: Page) -> Places:
        """Publish what is not parked. A row that is refused splits its run in two, so no row is sent more than twice.

        (What came before it has been acknowledged, but at offsets the refusal does not tell.)
        """
        published: dict[TopicPartition, int] = {}
        runs = [list(page.rows)]
        while runs:
            run = self._parking.pass_by(runs.pop(0))
            try:
                published.update(self._send(run))
            except MessageRefused as refused:
                self._park(run[refused.index], refused)
                runs[:0] = [run[: refused.index], run[refused.index + 1 :]]
        return published

    def _park(self, row: OutboxRow, refused: MessageRefused) -> None:
        self._parking.hold(row, first_line(refused))
        log.warning("parked", topic=row.topic, key=row.key, reason=first_line(refused))
        # They hold the run that it was in and, mostly, the error itself: of a page each row may be refused.
        clear_frames(refused.__traceback__)
        self._going_on()

    def _send(self, rows: Sequence[OutboxRow]) -> Places:
        if not rows:
            return {}
        sent = self._producer.publish(rows)
        RELAY_PUBLISHED.inc(len(rows))
        return sent

    def _advance(self, cursor: Cursor, published: Places, *, lasting: bool = True) -> None:
        lease, ttl_s = self._lease, self._settings.lease_s
        with self._connection.transaction() if self._parking.held else nullcontext():
            cursors.advance(self._connection, lease.name, lease.epoch, cursor, published, ttl_s, lasting=lasting)
            if self._parking.held:
                self._parking.write()
        self._written_at = time.monotonic()
        if lasting:
            self._lasting_at = self._written_at

    def _lasting(self) -> bool:
        """Whether the next commit is to be waited for until it is on disk."""
        return time.monotonic() - self._lasting_at > LASTING_EVERY_S

    def _due(self) -> bool:
        """Idle windows are written down now and then only: every write is one more transaction."""
        return time.monotonic() - self._written_at > self._settings.lease_s / 3

    def _adapt(self, rows: int) -> bool:
        """Fit the size of a page to what waits; whether there is likely to be more."""
        if rows >= self._limit:
            self._limit = min(self._limit * 2, self._settings.rows_max)
            return True
        if rows < self._limit // 4:
            self._limit = max(self._limit // 2, self._settings.page_min)
        return False

    def _trim(self, rows: int) -> None:
        self._since_trim += rows
        overdue = self._since_trim and time.monotonic() - self._trimmed_at > TRIM_EVERY_S
        if self._cursor.open or not (self._since_trim >= PART_ROWS or overdue):
            return
        self._advance(self._cursor, {})
        _, left = trim(self._connection)
        self._since_trim, self._trimmed_at = min(left, 1), time.monotonic()

    def _redrive(self) -> int:
        """Publish the rows of parked keys that may go on; returns how many."""
        began = time.monotonic()
        if not self._parking or began < self._redrive_at:
            return 0
        due = self._parking.due()
        looked = time.monotonic()
        self._redrive_at = looked + max(REDRIVE_EVERY_S, REDRIVE_SHARE * (looked - began))
        tried = [self._try_again(key) for key in due]
        if REDRIVE_ROWS in tried:
            self._redrive_at = -math.inf  # a long queue goes on with the next step
        return sum(tried)

    def _try_again(self, key: Key) -> int:
        """As :meth:`step`: publish, then delete and advance in one transaction guarded by the epoch."""
        rows = self._parking.rows(key)
        self._ask(rows)
        again = self._publish_again(key, rows)
        with self._connection.transaction():
            self._advance(self._cursor, again.published)
            self._parking.done(key, again.rows)
            if again.refused is not None:
                self._parking.refused(key, *again.refused)
        return len(again.rows)

    def _publish_again(self, key: Key, rows: Sequence[OutboxRow]) -> Again:
        del key
        try:
            return Again(rows, self._send(rows))
        except MessageRefused as error:
            before = rows[: error.index]
            return Again(before, self._send(before), (rows[error.index], first_line(error)))
