"""Settings of the local broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from outbox.errors import SettingsError

PART_MESSAGES: Final = 262_144
PARTS: Final = 8
"""The ring of table partitions, as made by ``0002_local_broker.sql``."""

KEEP_MAX: Final = PART_MESSAGES * (PARTS - 2)
"""One part is being filled, and one may be about to be emptied."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How the local broker is used. Times are in seconds."""

    partitions: int = 4
    """Of topics made on demand; never changed afterwards, as keys would move between partitions."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Key, value and headers together; larger messages are refused."""
    keep_messages: int = 1_000_000
    """At least this many of the newest messages, over all topics, are kept. Older ones leave: projectors fill
    gaps from the log."""
    lease_s: float = 3.0
    """A member that has died gives up its partitions after this."""
    poll_interval_max_s: float = 300.0
    """A member that has not polled for this long gives up its partitions."""
    timeout_s: float = 30.0
    """A statement that has not ended by then raises ``BrokerUnavailable``."""

    @property
    def safe_s(self) -> float:
        """A member that stands still keeps its partitions for this long at least: its last heartbeat (there are three
        to a lease, and a busy machine is late with them) lies before its halt."""
        return self.lease_s / 2

    def __post_init__(self) -> None:
        for name in ("partitions", "max_message_bytes", "lease_s", "poll_interval_max_s", "timeout_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"local broker: {name} is {getattr(self, name)!r}: it must be above 0")
        if not 0 <= self.keep_messages <= KEEP_MAX:
            raise SettingsError(f"local broker: keep_messages is {self.keep_messages}: it must be 0 to {KEEP_MAX}")
