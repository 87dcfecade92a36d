"""What a fault is to be run with, and what a run of it showed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.checks import Violation

if TYPE_CHECKING:
    from tests.faults.run import Run

Fault = Callable[["Run"], None]


@dataclass(frozen=True)
class Plan:
    """What a fault needs. ``bound_s``: how long after the fault everything must be right again.

    ``alone``: it hurts servers that other runs use, so no other runs beside it.
    """

    name: str
    inject: Fault
    broker: str = "local"
    engine: str = "poll"
    """The relay's."""
    delivery: str = "at_least_once"
    """The relay's. ``exactly_once``: a reader of committed messages must see no event twice."""
    kinds: tuple[str, ...] = ("rows",)
    bound_s: float = 30.0
    alone: bool = False
    cheap: bool = True
    poison: bool = False
    """Streams are expected to stand still before an event that cannot be folded."""
    topic_whole: bool = True
    """What was published is still on the topic at the end."""
    ages: bool = True
    """A record is not older than its content: see :data:`tests.faults.faults.NOT_YET` for where that is not asked."""


@dataclass(frozen=True)
class Outcome:
    """What a run showed. ``error``: the harness itself failed, so nothing is known."""

    fault: str
    seed: int
    violations: tuple[Violation, ...]
    recovery_s: float | None
    took_s: float
    events: int
    kept: Path | None
    """Logs and histories of a run in which something went wrong."""
    error: str | None = None
