"""What a capture can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass

from outbox.capture.source import NAME
from outbox.errors import SettingsError


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """Times in seconds. Raises :class:`~outbox.errors.SettingsError` for a name that cannot name a slot."""

    name: str = "capture"
    """One database captured into one log: one slot, one leader. ``[a-z0-9_]``, at most 20 characters."""
    lease_s: float = 3.0
    """How long after a leader's last sign of life another one takes over."""
    look_s: float = 2.0
    """How often the leader looks whether tables were added or dropped, or altered without a change of a row."""
    sleep_s: float = 0.2
    """The longest wait for the stream at a time: it bounds how late the leader notices that it should stop."""
    retry_s: float = 0.5
    """The rest after a failure of a database; the next ones double (:mod:`outbox.rests`)."""
    slot_wal_warn_bytes: int = 1 << 30
    """Warn when the slot keeps more of the source's write-ahead log than this."""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise SettingsError(f"capture name {self.name!r}: lower-case letters, digits and '_' only, at most 20")

    @property
    def lease(self) -> str:
        return f"capture:{self.name}"
