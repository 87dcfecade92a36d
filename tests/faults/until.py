"""Waiting on conditions, with a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_S = 0.02
PATIENCE_S = 90.0
"""How long the way to a fault may take: starting a process takes seconds, on a busy machine many. What comes after the
fault is bound by its plan."""


class TooLong(Exception):
    """A condition did not come true in time."""


def until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S, look_s: float = LOOK_S) -> T:
    """What ``condition`` gives once that is true. Raises :class:`TooLong`, naming ``what``."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TooLong(f"waited {timeout_s:.0f} s in vain: {what}")
        pause.wait(look_s)
    return result
