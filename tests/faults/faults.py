"""The registry of faults: one small function each, in the files of ``tests/faults/cases``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.faults.plan import Fault, Plan

FAULTS: dict[str, Plan] = {}

NOT_YET = (
    "store put back to an older copy: the version of a record whose content came back to what it was (verify compares"
    " content, so an older version stays, and a late write between the two would pass the guard)",
    "capture of ordinary tables: killed, stopped and replaced, its slot dropped, PostgreSQL killed under it (it has tests"
    " of its own in tests/integration and tests/e2e)",
)
"""Not in the matrix yet."""


def fault(name: str, **needs: Any) -> Callable[[Fault], Fault]:
    """Register a fault. ``needs`` are the fields of :class:`~tests.faults.plan.Plan`."""

    def register(inject: Fault) -> Fault:
        FAULTS[name] = Plan(name, inject, **needs)
        return inject

    return register
