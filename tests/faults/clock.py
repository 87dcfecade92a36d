"""A wall clock that jumps, for one process: Python's ``time.time`` and ``time.time_ns`` and what is made of them.

It covers what the product reads of the wall clock (ids of events, log lines, scheduling). ``time.monotonic`` does not
jump on a real machine either. Not covered: the clocks that C libraries read (librdkafka's timestamps) and
``datetime.now``, which product code does not use to decide anything; PostgreSQL's own clock goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

JUMP_S = "OUTBOX_TEST_CLOCK_JUMP_S"
AFTER_S = "OUTBOX_TEST_CLOCK_AFTER_S"
"""How long the process runs before its clock jumps."""


def arm(environment: Mapping[str, str]) -> None:
    """Let this process's wall clock jump, if its environment says so."""
    if JUMP_S not in environment:
        return
    jump_s, at = float(environment[JUMP_S]), time.monotonic() + float(environment[AFTER_S])
    real, real_ns = time.time, time.time_ns

    def jumped_s() -> float:
        return jump_s if time.monotonic() >= at else 0.0

    time.time = lambda: real() + jumped_s()
    time.time_ns = lambda: real_ns() + int(jumped_s() * 1e9)
