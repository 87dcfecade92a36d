"""The local broker's transactions are PostgreSQL's: messages and note are committed together.

The topics may be in the database of the outbox or in another one: nothing here relies on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from outbox.broker.local_link import Connection, Link
from outbox.broker.local_producer import LocalPublishing
from outbox.broker.local_settings import LocalSettings
from outbox.broker.protocol import Note, Outgoing, Places
from outbox.broker.topics import TopicRefused, first_refused
from outbox.errors import Fenced

HALTED_MS: Final = 5_000
"""A publisher stopped in the middle of a transaction holds locks; the server ends it after this."""

_TAKE: Final = """
INSERT INTO outbox.broker_note AS n (name, epoch) VALUES (%s, 1)
ON CONFLICT (name) DO UPDATE SET epoch = n.epoch + 1 RETURNING epoch, note
"""
_KEEP: Final = """
UPDATE outbox.broker_note SET note = coalesce(%(note)s, note) WHERE name = %(name)s AND epoch = %(epoch)s
"""


class LocalTransactions(LocalPublishing):
    """See :class:`outbox.broker.protocol.Transactions`."""

    def __init__(self, link: Link, settings: LocalSettings, name: str) -> None:
        super().__init__(link, settings)
        self._name = name
        self._epoch = 0

    def recover(self) -> bytes | None:
        """See the protocol."""
        with self._link.use() as connection:
            row = connection.execute(_TAKE, [self._name]).fetchone()
        self._epoch, note = row or (0, None)
        return None if note is None else bytes(note)

    def publish(self, messages: Sequence[Outgoing], note: Note | None = None) -> Places:
        """See the protocol."""
        try:
            with self._link.use() as connection:
                self._learn(connection, messages)
                chunks = list(self._chunks(messages)) if messages else []
                with connection.transaction():
                    places = self._placed(chunks, [self._put(connection, chunk) for chunk in chunks])
                    self._keep(connection, note(places) if note else None)
                self._trim(connection, len(messages))
        except TopicRefused as error:
            raise first_refused(messages, error) from error
        return places

    def _keep(self, connection: Connection, note: bytes | None) -> None:
        kept = connection.execute(_KEEP, {"note": note, "name": self._name, "epoch": self._epoch})
        if kept.rowcount != 1:
            raise Fenced(f"{self._name}: another publisher has taken over from epoch {self._epoch}")


def impatient(connection: Connection) -> None:
    """Have the server end a transaction that its publisher has stopped in."""
    connection.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [str(HALTED_MS)])
