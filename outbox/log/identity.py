"""Which log this is, and whether it may be worked on.

A log that goes back in time (PostgreSQL restored from a backup) is the one fault that no guard inside
PostgreSQL can see: the restored database agrees with itself. So whoever holds something the log gave them
(a store, a broker, a running process) compares, and the first to find an event that the log no longer has
writes that down here. From then on relay and projectors refuse to work until ``outbox reconcile`` is done.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from outbox.broker.protocol import Delivery
from outbox.database import Connection, not_migrated
from outbox.errors import LogWentBack

REMEDY: Final = "stop what appends, run `outbox reconcile`, then start everything again"

LOST: Final = "which the log does not have: PostgreSQL was restored to an earlier moment"

_HERE: Final = """
SELECT log_id, system_identifier, timeline, halted, cut_at,
       (SELECT system_identifier FROM pg_control_system()),
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
FROM outbox.log_identity
"""
# The first reason stays. Every lease is fenced, so that a leader that has not noticed writes nothing more.
_HALT: Final = """
UPDATE outbox.log_identity SET halted = coalesce(halted, %s),
    cut_at = CASE WHEN halted IS NULL THEN clock_timestamp() ELSE coalesce(cut_at, clock_timestamp()) END
"""
_FENCE: Final = "UPDATE outbox.lease SET epoch = epoch + 1, expires_at = '-infinity'"
_ACCEPT: Final = "UPDATE outbox.log_identity SET timeline = %s WHERE halted IS NULL"
_UNKNOWN: Final = """
SELECT w.id FROM unnest(%s::uuid[]) AS w (id) WHERE NOT EXISTS (SELECT FROM outbox.event e WHERE e.id = w.id)
    AND NOT EXISTS (SELECT FROM outbox.erased x WHERE x.id = w.id) LIMIT 1
"""
_AHEAD: Final = """
SELECT name FROM outbox.relay_cursor
WHERE pg_snapshot_xmax(b) > pg_snapshot_xmax(pg_current_snapshot()) ORDER BY name LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """The row of ``outbox.log_identity``, and where the server says it is now."""

    log_id: uuid.UUID
    system_identifier: int
    timeline: int
    halted: str | None
    cut_at: datetime | None
    """When it was halted last: generations made before may hold events that the log has lost."""
    system_now: int
    timeline_now: int

    @property
    def promoted(self) -> bool:
        """Whether the server was promoted (a fail-over, or a restore to a point in time) since last accepted."""
        return self.timeline_now != self.timeline


def read_identity(connection: Connection) -> Identity:
    """The identity. Raises :class:`~outbox.errors.DatabaseError` if the database is not migrated."""
    try:
        row = connection.execute(_HERE).fetchone()
    except psycopg.errors.UndefinedTable as error:
        raise not_migrated(error) from error
    if row is None:
        raise not_migrated(LookupError("outbox.log_identity is empty"))
    return Identity(*row)


def halt(connection: Connection, reason: str) -> LogWentBack:
    """Write down that the log went back, fence every relay, and return the error to raise."""
    with connection.transaction():
        connection.execute(_HALT, [reason])
        connection.execute(_FENCE)
    return went_back(reason)


def went_back(reason: str) -> LogWentBack:
    """The error, with what to do."""
    return LogWentBack(f"{reason}: {REMEDY}")


def check_identity(connection: Connection) -> Identity:
    """The identity, if this log may be worked on as far as the database itself can tell.

    Raises :class:`~outbox.errors.LogWentBack` if it was halted, if the tables were moved to another cluster
    (whose transaction ids mean something else), or if a relay's cursor is ahead of every transaction there is.
    """
    found = read_identity(connection)
    if found.halted is not None:
        raise went_back(found.halted)
    if found.system_now != found.system_identifier:
        raise halt(
            connection,
            f"the log was moved from PostgreSQL system {found.system_identifier} to {found.system_now},"
            " whose transaction ids are others",
        )
    ahead = cursor_ahead(connection)
    if ahead is not None:
        raise halt(connection, f"the cursor of relay {ahead!r} is ahead of every transaction: PostgreSQL went back")
    return found


def cursor_ahead(connection: Connection) -> str | None:
    """The first relay whose cursor is ahead of every transaction there is, if one is."""
    row = connection.execute(_AHEAD).fetchone()
    return str(row[0]) if row else None


def accept_timeline(connection: Connection, timeline: int) -> None:
    """The server was promoted and has lost nothing that anybody holds: not to be asked again."""
    connection.execute(_ACCEPT, [timeline])


def unknown_event(connection: Connection, ids: Sequence[uuid.UUID]) -> uuid.UUID | None:
    """The first of these events that the log has lost; None if it has, or had until they were erased by law, all."""
    row = connection.execute(_UNKNOWN, [list(ids)]).fetchone() if ids else None
    return row[0] if row else None


def event_ids(deliveries: Iterable[Delivery]) -> list[uuid.UUID]:
    """The ids of those that are events."""
    found = []
    for delivery in deliveries:
        with suppress(KeyError, ValueError):
            found.append(uuid.UUID(delivery.headers["id"].decode()))
    return found
