"""What a relay can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from outbox.errors import SettingsError

EngineName = Literal["poll", "cdc"]
DeliveryName = Literal["at_least_once", "exactly_once"]

PAGES_A_TRANSACTION: Final = 4
"""A transaction takes some 35 ms more than its messages, however many they are."""


NAME_LENGTH_MAX: Final = 200
"""Of a relay's name, which is part of keys in PostgreSQL and of the name of its transactions in Kafka."""


def check_name(name: str) -> str:
    """A relay's name. Raises :class:`ValueError` for one that nobody could type or tell from another."""
    if not name.strip() or not name.isprintable() or len(name) > NAME_LENGTH_MAX:
        raise ValueError(f"it must be 1 to {NAME_LENGTH_MAX} printable characters")
    return name


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Times in seconds, pages in rows of the outbox. Raises :class:`~outbox.errors.SettingsError` for nonsense."""

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
    """At least once. Exactly once a page is a transaction of Kafka and :data:`PAGES_A_TRANSACTION` times as large."""
    sleep_min_s: float = 0.001
    sleep_max_s: float = 0.05
    """A relay with nothing to do asks ever less often, down to this, while it cannot sleep until it is woken
    (:mod:`outbox.relay.sleep`): a transaction that has appended is still open, or another relay sleeps already."""
    retry_s: float = 0.5
    """The rest after a failure of the broker or the database; the next ones double (:mod:`outbox.rests`)."""

    def __post_init__(self) -> None:
        try:
            check_name(self.name)
        except ValueError as error:
            raise SettingsError(f"relay.name is {self.name!r:.80}: {error}") from error
        least = {"lease_s": 0, "page_min": 1, "page_max": 1, "sleep_min_s": 0, "sleep_max_s": 0, "retry_s": 0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise SettingsError(f"relay.{name} is {getattr(self, name)!r}: it must be {bound} or more")

    @property
    def rows_max(self) -> int:
        """Rows that are published at once, at most."""
        return self.page_max * (PAGES_A_TRANSACTION if self.delivery == "exactly_once" else 1)

    @property
    def transactions(self) -> str:
        """The name of the relay's transactions in the broker: of one name only one relay publishes."""
        return f"{self.prefix}.__relay.{self.name}"
