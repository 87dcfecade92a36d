"""A row of the outbox, which is the message it becomes.

A relay that is behind sees a row once and passes it on, so nothing is made of it that is not sent: columns stay as
PostgreSQL sent them, and headers are made when the client asks for them, one message at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from outbox.envelope import Headers, event_headers, plain_headers
from outbox.log.as_sent import EMPTY, json_of

COLUMNS: Final = """
o.seq, o.position,
CASE WHEN o.position IS NULL THEN o.topic ELSE %(prefix)s::text || '.' || split_part(e.stream, '-', 1) END,
CASE WHEN o.position IS NULL THEN o.key ELSE e.stream END,
CASE WHEN o.position IS NULL THEN o.payload ELSE e.data END,
e.version, e.type, e.id::text, e.at,
CASE WHEN o.position IS NULL THEN o.headers ELSE e.meta END
"""
"""The columns of an :class:`OutboxRow`, of a row ``o`` of the outbox and its event ``e``, if it has one. To be read in
binary form, after :func:`outbox.log.as_sent.read_as_sent`."""

STANDS: Final = "(o.position IS NULL OR e.stream IS NOT NULL)"
"""Whether there is something to publish: an event may have been erased by law before it was."""


class OutboxRow(NamedTuple):
    """An event that waits or, without a position, a plain message; see :class:`~outbox.broker.protocol.Outgoing`."""

    seq: int
    position: int | None
    topic: str
    key: str
    value: bytes | None
    version: int = 0
    type: str = ""
    id: str = ""
    at_us: int = 0
    """Microseconds since 2000-01-01 UTC."""
    json: bytes | None = None
    """The event's meta or the plain message's headers, as PostgreSQL sends a jsonb."""

    @property
    def headers(self) -> Headers:
        """Made anew whenever they are asked for."""
        _, position, _, _, _, version, type_, id_, at_us, json = self
        if position is None:
            return plain_headers(json_of(json)) if json else []
        meta = None if json == EMPTY or json is None else json_of(json)
        return event_headers(id_, type_, version, position, at_us, meta)


outbox_row = partial(tuple.__new__, OutboxRow)
"""The row of a sequence of its columns. (``OutboxRow._make`` counts them, which takes as long as all the rest.)"""


def outbox_rows(cursor: Any) -> Any:
    """psycopg's row factory of them."""
    del cursor
    return outbox_row


def standing(rows: Sequence[OutboxRow]) -> list[OutboxRow]:
    """Those of which :data:`STANDS` holds: the others have no topic."""
    return [row for row in rows if row.topic is not None]


def ids_of(rows: Sequence[OutboxRow]) -> list[str]:
    """The ids of the events among them."""
    return [row.id for row in rows if row.position is not None]
