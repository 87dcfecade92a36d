"""What the parts of a build share: who may build, whether to go on, and whom to tell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from outbox.database import Connection, alone
from outbox.errors import OutboxError
from projectors.pipeline import Plan

BUILD_LOCK: Final = 0x6F62

LOOK_S: Final = 0.05
"""How often a build looks whether it is close behind, or was told to stop."""

Progress = Callable[[str, int, int], None]
"""Told the phase, the streams and the records done so far."""


class Building(OutboxError):
    """This projector is being built: by another process now, or by this one, which was told to stop."""


def lock(connection: Connection, projector: str) -> None:
    """Be the only one to build, for as long as the connection lives. Raises :class:`Building` if another is at it."""
    if not alone(connection, BUILD_LOCK, projector):
        raise Building(f"{projector}: another process is building it now")


def check_stop(plan: Plan, generation: str, stop: threading.Event) -> None:
    """Raise :class:`Building` if the build was told to stop."""
    if stop.is_set():
        raise Building(f"{plan.name}: stopped while building {generation}; run it again to go on")
