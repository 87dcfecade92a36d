"""Exactly once: each page is one transaction in the broker, and the cursor behind it is in that transaction.

PostgreSQL's commit cannot be part of it. So the broker's last note is the truth, and PostgreSQL's cursor follows: a
leader begins by fencing every earlier one, reads the last note, and makes good what its writer did not get to do
(:func:`recover`). Notes are numbered, PostgreSQL counts along, and no leader is ever more than one ahead.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Final

from outbox.broker.protocol import Places, Transactions
from outbox.database import Connection, first_line
from outbox.errors import MessageRefused
from outbox.log.identity import Identity, accept_timeline, check_identity, halt, unknown_event
from outbox.logs import logger
from outbox.metrics import RELAY_PUBLISHED
from outbox.relay import cursor as cursors
from outbox.relay.ahead import ReadAhead
from outbox.relay.cursor import Cursor
from outbox.relay.horizon import Horizon
from outbox.relay.leader import Again, Leader
from outbox.relay.lease import Lease
from outbox.relay.note import Done, Note
from outbox.relay.parking import Key, Parking
from outbox.relay.poll import Page
from outbox.relay.rows import OutboxRow, ids_of
from outbox.relay.settings import RelaySettings

EVENTS_NAMED: Final = 32
"""A PostgreSQL that went back has lost the newest, so a few spread over the page will do."""

log = logger("outbox.relay")


class ExactlyOnceLeader(Leader):
    """Publishes what comes after the cursor, each row once to a reader of committed messages.

    A step has the order of :meth:`~outbox.relay.leader.Leader.step`. A crash before the broker's commit leaves a
    transaction that the next leader's :func:`recover` undoes; a crash after it leaves a note that is made good there.
    """

    def __init__(
        self,
        connection: Connection,
        engine: ReadAhead,
        transactions: Transactions,
        lease: Lease,
        settings: RelaySettings,
        identity: Identity,
        horizon: Horizon | None = None,
        going_on: Callable[[], None] = lambda: None,
    ) -> None:
        """``transactions`` have recovered, and ``identity`` is what :func:`recover` has given."""
        super().__init__(connection, engine, transactions, lease, settings, horizon, going_on)
        self._transactions = transactions
        self._identity = identity
        self._steps = cursors.steps(connection, lease.name)

    def _publish(self, page: Page) -> Places:
        """Publish what is not parked. A refusal undoes the transaction, and the page is tried again without the row."""
        run = self._parking.pass_by(page.rows)
        while run:
            try:
                return self._commit(run, page.cursor)
            except MessageRefused as refused:
                before, behind = run[: refused.index], run[refused.index + 1 :]
                self._park(run[refused.index], refused)
                run = [*before, *self._parking.pass_by(behind)]
        return {}

    def _lasting(self) -> bool:
        """Always: the note may be one page ahead of PostgreSQL, and no more."""
        return True

    def _publish_again(self, key: Key, rows: Sequence[OutboxRow]) -> Again:
        refused: tuple[OutboxRow, str] | None = None
        while rows:
            try:
                done = Done(*key, [row.seq for row in rows])
                return Again(rows, self._commit(rows, self._cursor, done), refused)
            except MessageRefused as error:
                refused = rows[error.index], first_line(error)
                rows = rows[: error.index]
        return Again((), {}, refused)

    def _commit(self, rows: Sequence[OutboxRow], cursor: Cursor, done: Done | None = None) -> Places:
        def note(places: Places) -> bytes:
            return self._note(rows, cursor, places, done).encode()

        published = self._transactions.publish(rows, note)
        self._steps += 1
        RELAY_PUBLISHED.inc(len(rows))
        return published

    def _note(self, rows: Sequence[OutboxRow], cursor: Cursor, published: Places, done: Done | None) -> Note:
        return Note(
            str(self._identity.log_id),
            self._identity.timeline_now,
            self._steps + 1,
            cursor,
            published,
            self._parking.reasons,
            done,
            _some_events(rows),
        )


def recover(
    connection: Connection,
    transactions: Transactions,
    lease: Lease,
    settings: RelaySettings,
    check_log: Callable[[], None],
) -> Identity:
    """Fence every earlier leader, and bring PostgreSQL up to the broker's last note.

    1. Fence in the broker: what earlier leaders have not committed there is undone. A crash here leaves nothing.
    2. Own the cursor in PostgreSQL. From here on earlier leaders write nothing at all.
    3. If the note is of a page that PostgreSQL has not counted, write down what it says, in one transaction that
       takes effect only for the leader's epoch. A crash before it leaves the note for the next leader.

    ``check_log`` looks whether the broker holds what the log has lost; only asked if the note does not say so.
    Raises :class:`~outbox.errors.Fenced`, :class:`~outbox.errors.BrokerUnavailable`, or
    :class:`~outbox.errors.LogWentBack` if the note is of something that PostgreSQL no longer knows.
    """
    last = transactions.recover()
    cursors.load(connection, lease.name, lease.epoch)
    identity, counted = check_identity(connection), cursors.steps(connection, lease.name)
    note = None if last is None else Note.decode(last)
    if note is None or note.log != str(identity.log_id) or note.step < counted:
        check_log()  # what was published otherwise, or for an earlier log, left no note
        return identity
    if note.step > counted:
        _check(connection, note, counted, identity, lease)
        _make_good(connection, note, lease, settings)
    if identity.promoted:
        accept_timeline(connection, identity.timeline_now)
    return identity


def _check(connection: Connection, note: Note, counted: int, identity: Identity, lease: Lease) -> None:
    """A cursor means nothing to a PostgreSQL whose transactions are others: it would pass by what is unpublished."""
    row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    here = row is not None and note.cursor.b.xmax <= row[0] and note.timeline == identity.timeline_now
    if (
        note.step > counted + 1
        or not here
        or unknown_event(connection, [uuid.UUID(event) for event in note.events]) is not None
    ):
        raise halt(
            connection,
            f"relay {lease.name!r} has published {note.step} pages by its note in the broker and {counted} by"
            f" PostgreSQL, which went back",
        )


def _make_good(connection: Connection, note: Note, lease: Lease, settings: RelaySettings) -> None:
    parking = Parking(connection, lease.name, settings.prefix)
    with connection.transaction():
        cursors.advance(connection, lease.name, lease.epoch, note.cursor, note.published, settings.lease_s)
        parking.hold_again(note.parked)
        if parking.held:
            parking.write()
        if note.done is not None:
            parking.done_by_seq((note.done.topic, note.done.key), note.done.seqs)
    log.info("made good what the last leader had published and not written down", step=note.step)


def _some_events(rows: Sequence[OutboxRow]) -> list[str]:
    """Ids of events, spread over the page."""
    return ids_of(rows[:: max(1, len(rows) // EVENTS_NAMED)])
