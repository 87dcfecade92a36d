"""One leader a relay name, by lease. The epoch it gives is what fences a leader that was paused too long.

All times are the database's clock, so the machines' own clocks may say what they like.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from typing import Final

from outbox.database import Connection

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
        """Let the next one in at once, if the lease is still ours."""
        connection.execute(_RELEASE, self._parameters())

    def _parameters(self) -> dict[str, object]:
        return {"name": self.name, "epoch": self.epoch, "ttl_s": self.ttl_s}


def take(connection: Connection, name: str, holder: str, ttl_s: float) -> Lease | None:
    """Take the lease if it is free, expired or this holder's own; None if another one holds it."""
    row = connection.execute(_TAKE, {"name": name, "holder": holder, "ttl_s": ttl_s}).fetchone()
    return Lease(name, row[0], ttl_s) if row else None
