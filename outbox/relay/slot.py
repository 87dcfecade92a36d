"""The replication slots of a relay: their names, their end, and how much of the log they keep the server from removing.

A slot's name is ``outbox_<oid of the database>_<relay>_<epoch>``. Names of slots are unique in a whole cluster, and
the epoch makes each attempt its own: no leader ever takes a slot for another one than it is.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import psycopg
from prometheus_client import Gauge

from outbox.database import Connection, first_line
from outbox.errors import DatabaseError, SettingsError
from outbox.logs import logger
from outbox.relay.replication import lsn_number

log = logger("outbox.relay")

PUBLICATION: Final = "outbox_relay"
"""As in the migration ``cdc``."""
TERMINATE_MS: Final = 10_000
"""How long a slot's earlier user may take to let go of it."""
SLOT_WAL_BYTES: Final = Gauge("outbox_relay_slot_wal_bytes", "Write-ahead log that the relay's slot keeps, in bytes.")

_PLAIN: Final = re.compile(r"[a-z0-9]{1,24}")
_DATABASE: Final = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"
_OWN: Final = """
SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND starts_with(slot_name, %s)
"""
_STATE: Final = """
SELECT coalesce(wal_status, 'lost'), confirmed_flush_lsn::text,
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
FROM pg_replication_slots WHERE slot_name = %s AND database = current_database() AND plugin = 'pgoutput'
"""
# Whoever streams, and nobody else: somebody who is just dropping the slot, or looks into it, has it in use as well.
_TERMINATE: Final = """
SELECT pg_terminate_backend(pid, %s) FROM pg_replication_slots JOIN pg_stat_activity ON pid = active_pid
WHERE slot_name = %s AND backend_type = 'walsender'
"""
_DROP: Final = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
_ABLE: Final = """
SELECT current_setting('wal_level'), EXISTS (SELECT FROM pg_publication WHERE pubname = %s)
"""


def name_of(connection: Connection, relay: str, epoch: int) -> str:
    """The slot that this epoch of a relay may make."""
    return f"{_prefix(connection, relay)}{epoch}"


def check_able(connection: Connection) -> None:
    """Raise what keeps this server from being streamed, with what to do.

    :class:`~outbox.errors.SettingsError` for its ``wal_level``, :class:`~outbox.errors.DatabaseError` for its tables.
    """
    row = connection.execute(_ABLE, [PUBLICATION]).fetchone()
    level, published = row or ("unknown", False)
    if level != "logical":
        raise SettingsError(
            f"relay.engine is 'cdc', but PostgreSQL runs with wal_level = {level}: set wal_level = logical and restart"
            " it, or set relay.engine = 'poll'"
        )
    if not published:
        raise DatabaseError(
            f"the publication {PUBLICATION!r} is missing: run `outbox migrate`, or if it was dropped:"
            f" CREATE PUBLICATION {PUBLICATION} FOR TABLE outbox.event, outbox.outbox"
            " WITH (publish = 'insert', publish_via_partition_root = true)"
        )


def usable(connection: Connection, slot: str) -> bool:
    """Whether a slot is there and still has all of the log that it needs."""
    row = connection.execute(_STATE, [slot]).fetchone()
    return row is not None and row[0] != "lost" and row[1] is not None


def confirmed(connection: Connection, slot: str) -> int:
    """How far the slot's user has confirmed; 0 if there is no such slot."""
    row = connection.execute(_STATE, [slot]).fetchone()
    return lsn_number(row[1]) if row is not None and row[1] is not None else 0


def release(connection: Connection, slot: str) -> None:
    """End whoever streams from the slot: a leader that was deposed, or the server's half of a broken connection."""
    connection.execute(_TERMINATE, [TERMINATE_MS, slot])


def drop_older(connection: Connection, relay: str, epoch: int, keep: str | None = None) -> None:
    """Drop this relay's slots of earlier epochs, which would keep the log from being removed for ever; not ``keep``.

    A slot of a later epoch belongs to a leader that has taken over: it is left alone. One that cannot be dropped is
    warned of and tried again by the next leader.
    """
    drop_before(connection, _prefix(connection, relay), epoch, keep)


def drop_before(connection: Connection, prefix: str, epoch: int, keep: str | None = None) -> None:
    """Drop the slots named ``prefix`` and an epoch below this one; not ``keep``. See :func:`drop_older`."""
    for (slot,) in connection.execute(_OWN, [prefix]).fetchall():
        made_in = slot.removeprefix(prefix)
        if slot != keep and made_in.isdigit() and int(made_in) < epoch:
            drop(connection, slot)


class Watch:
    """Looks at how much of the log a slot keeps back, and warns once each time that is more than ``bound_bytes``."""

    def __init__(self, connection: Connection, bound_bytes: int, gauge: Gauge = SLOT_WAL_BYTES) -> None:
        self._connection = connection
        self._gauge = gauge
        self._bound_bytes = bound_bytes
        self._warned = False

    def look(self, slot: str) -> None:
        """Set the metric; warn when the bound is passed or the server is about to give the slot up."""
        row = self._connection.execute(_STATE, [slot]).fetchone()
        status, _, kept_bytes = row or ("lost", None, 0)
        self._gauge.set(kept_bytes)
        danger = kept_bytes > self._bound_bytes or status in {"unreserved", "lost"}
        if danger and not self._warned:
            log.warning(
                "the slot keeps much of the write-ahead log", slot=slot, bytes=kept_bytes, wal_status=status,
                bound_bytes=self._bound_bytes,
            )  # fmt: skip
        self._warned = danger


def drop(connection: Connection, slot: str) -> None:
    """Drop a slot and end its user; one that cannot be dropped is warned of, one that is gone is none."""
    try:
        release(connection, slot)
        if connection.execute(_DROP, [slot]).rowcount:
            log.info("dropped a slot that is no longer used", slot=slot)
    except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject, psycopg.errors.InsufficientPrivilege) as error:
        log.warning("a slot that is no longer used could not be dropped", slot=slot, reason=first_line(error))


def _prefix(connection: Connection, relay: str) -> str:
    row = connection.execute(_DATABASE).fetchone()
    if row is None:
        raise DatabaseError("PostgreSQL does not tell the current database")
    plain = relay if _PLAIN.fullmatch(relay) else hashlib.sha256(relay.encode()).hexdigest()[:24]
    return f"outbox_{row[0]}_{plain}_"
