"""Rests between attempts that fail: short at first, so that a moment's outage is over in a moment, then ever longer, so
that an hour's fills no log."""

from __future__ import annotations

import time
from typing import Final

FACTOR_MAX: Final = 8
"""Rests double up to this many times the first: what comes back is still found in seconds."""


class Rests:
    """The rests of one process that runs through outages. Times in seconds."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._longest_s = first_s * FACTOR_MAX
        self._began = time.monotonic()
        self._next_s = first_s

    def begin(self) -> None:
        """An attempt begins."""
        self._began = time.monotonic()

    def failed(self) -> float:
        """The attempt has failed: how long to rest. One that lasted longer than the longest rest got somewhere before
        it failed, so it begins with the first rest again."""
        if time.monotonic() - self._began > self._longest_s:
            self._next_s = self._first_s
        rest_s, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return rest_s
