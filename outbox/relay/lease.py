"""One leader a relay name, by lease. The epoch it gives is what fences a leader that was paused too long.

All times are the database's clock, so the machines' own clocks may say what they like.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import psycopg

from outbox.database import Connection, connect
from outbox.errors import DatabaseError, Fenced
from outbox.logs import logger

log = logger("outbox.relay")

STALL_S: Final = 120.0
"""A leader that has not got on for so long hangs: longer than any wait of a broker's client."""

LOOKS_PER_TERM: Final = 6
"""How often a stand-by looks, in the time that a lease lasts."""

_TAKE: Final = """
INSERT INTO outbox.lease AS l (name, holder, epoch, expires_at)
VALUES (%(name)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl_s)s))
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder, epoch = l.epoch + 1, expires_at = excluded.expires_at
WHERE l.expires_at < clock_timestamp() OR l.holder = excluded.holder
RETURNING epoch
"""
_RENEW: Final = """
UPDATE outbox.lease SET expires_at = clock_timestamp() + make_interval(secs => %(ttl_s)s)
WHERE name = %(name)s AND epoch = %(epoch)s
"""
_RELEASE: Final = "UPDATE outbox.lease SET expires_at = '-infinity' WHERE name = %(name)s AND epoch = %(epoch)s"


def new_holder() -> str:
    """A name no other process has: for people the host and pid, for uniqueness a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held (or was: only the database knows)."""

    name: str
    epoch: int
    ttl_s: float

    def renew(self, connection: Connection) -> bool:
        """Hold on for another ``ttl_s`` seconds; False if a newer epoch has taken over."""
        return connection.execute(_RENEW, self._parameters()).rowcount == 1

    def release(self, connection: Connection) -> None:
        """Let the next one in at once, if the lease is still ours and the connection lives."""
        with suppress(psycopg.Error):  # else it runs out by itself
            connection.execute(_RELEASE, self._parameters())

    def _parameters(self) -> dict[str, object]:
        return {"name": self.name, "epoch": self.epoch, "ttl_s": self.ttl_s}


def take(connection: Connection, name: str, holder: str, ttl_s: float) -> Lease | None:
    """Take the lease if it is free, expired or this holder's own; None if another one holds it."""
    row = connection.execute(_TAKE, {"name": name, "holder": holder, "ttl_s": ttl_s}).fetchone()
    return Lease(name, row[0], ttl_s) if row else None


def wait_for(connection: Connection, name: str, holder: str, ttl_s: float, stop: threading.Event) -> Lease | None:
    """Stand by until the lease is this holder's, and say so once; None if told to stop first."""
    told = False
    while not stop.is_set():
        lease = take(connection, name, holder, ttl_s)
        if lease is not None:
            return lease
        if not told:
            log.info("standing by: another process leads", lease=name)
            told = True
        stop.wait(ttl_s / LOOKS_PER_TERM)
    return None


class Keeper:
    """Renews a lease from a thread, so that a slow page (a huge backlog, a slow broker) does not lose it.

    A paused process pauses its keeper too. A leader that hangs for :data:`STALL_S` is no longer kept.
    """

    def __init__(self, dsn: str, lease: Lease) -> None:
        self._dsn = dsn
        self._lease = lease
        self._stop = threading.Event()
        self._lost: Exception | None = None
        self._seen = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name="outbox-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Say that the leader goes on. Raises what ended the lease: ``Fenced`` or ``DatabaseError``."""
        self._seen = time.monotonic()
        if self._lost is not None:
            raise self._lost

    def _keep(self) -> None:
        try:
            with connect(self._dsn) as connection:
                while not self._stop.wait(self._lease.ttl_s / 3):
                    self._renew(connection)
        except (psycopg.Error, DatabaseError, Fenced) as error:
            self._lost = error

    def _renew(self, connection: Connection) -> None:
        if time.monotonic() - self._seen > STALL_S:
            raise Fenced(f"{self._lease.name!r}: no step was finished within {STALL_S:.0f} s")
        if not self._lease.renew(connection):
            raise Fenced(f"{self._lease.name!r}: another process has taken over from epoch {self._lease.epoch}")
