"""What a relay can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["poll", "cdc"]
DeliveryName = Literal["at_least_once", "exactly_once"]


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Times in seconds, pages in rows of the outbox."""

    name: str = "relay"
    """Relays of one name share one lease and one cursor. Each name publishes everything."""
    prefix: str = "outbox"
    """An event's topic is ``<prefix>.<category>``."""
    engine: EngineName = "poll"
    """How rows leave PostgreSQL: by asking for them, or out of its write-ahead log. May be changed at any time."""
    delivery: DeliveryName = "at_least_once"
    """How often a reader of committed messages sees a row after a crash of the relay. May be changed at any time."""
    slot_wal_warn_bytes: int = 1 << 30
    """Warn when the cdc engine's slot keeps more of the write-ahead log than this."""
    lease_s: float = 3.0
    """How long after a leader's last sign of life another one takes over."""
    page_min: int = 200
    page_max: int = 5_000
    sleep_min_s: float = 0.001
    sleep_max_s: float = 0.05
    """A relay with nothing to do asks ever less often, down to this, while it cannot sleep until it is woken
    (:mod:`outbox.relay.sleep`): a transaction that has appended is still open, or another relay sleeps already."""
    retry_s: float = 0.5
    """Pause after a failure of the broker or the database."""

    @property
    def transactions(self) -> str:
        """The name of the relay's transactions in the broker: of one name only one relay publishes."""
        return f"{self.prefix}.__relay.{self.name}"
