"""Many runs: every fault again and again with other seeds, until the number or the time is reached."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.perform import perform
from tests.faults.plan import Outcome, Plan
from tests.faults.results import MutantResult
from tests.faults.servers import Servers

MUTANT_BOUND_S = 8.0
"""A run whose guard is gone need not be waited for as long as one that is to recover."""

Tell = Callable[[Outcome], None]


@dataclass(frozen=True)
class Budget:
    """``runs`` of each fault at most, and no new run after ``minutes``. Runs begin with seed ``seed``."""

    runs: int
    minutes: float | None = None
    seed: int = 1
    lanes: int = 2
    """Runs at the same time, of faults that hurt only what is their own."""


def run_all(plans: Sequence[Plan], servers: Servers, budget: Budget, tell: Tell) -> list[Outcome]:
    """Every plan ``budget.runs`` times, round by round, so that a time that is over leaves all with as many."""
    until = time.monotonic() + budget.minutes * 60 if budget.minutes else None
    matrix = _Matrix(servers, tell, until)
    for number in range(budget.runs):
        matrix.round(plans, budget.seed + number, budget.lanes)
    return matrix.outcomes


class _Matrix:
    """Outcomes as they come, from several lanes."""

    def __init__(self, servers: Servers, tell: Tell, until: float | None) -> None:
        self._servers = servers
        self._tell = tell
        self._until = until
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []

    def round(self, plans: Sequence[Plan], seed: int, lanes: int) -> None:
        """One run of each, the cheap ones first. Those that hurt servers of all come last, one by one."""
        together = iter(sorted((plan for plan in plans if not plan.alone), key=lambda plan: not plan.cheap))
        with ThreadPoolExecutor(lanes) as pool:
            for lane in [pool.submit(self._lane, together, seed) for _ in range(lanes)]:
                lane.result()
        self._lane(iter([plan for plan in plans if plan.alone]), seed)

    def _lane(self, plans: Iterator[Plan], seed: int) -> None:
        while (plan := self._next(plans)) is not None:
            outcome = perform(plan, self._servers, seed)
            with self._lock:
                self.outcomes.append(outcome)
                self._tell(outcome)

    def _next(self, plans: Iterator[Plan]) -> Plan | None:
        if self._until is not None and time.monotonic() > self._until:
            return None
        with self._lock:
            return next(plans, None)


def try_mutants(names: Sequence[str], plans: dict[str, Plan], servers: Servers, seed: int) -> Iterator[MutantResult]:
    """Each guard taken away under the fault that it is there for."""
    for name in names:
        yield _tried(MUTANTS[name], plans[MUTANTS[name].caught_by], servers, seed)


def _tried(mutant: Mutant, plan: Plan, servers: Servers, seed: int) -> MutantResult:
    short = replace(plan, bound_s=min(plan.bound_s, MUTANT_BOUND_S))
    for number in range(mutant.attempts):
        outcome = perform(short, servers, seed + number, mutant.name)
        told = [v for v in outcome.violations if v.invariant != "I6"]
        if told:
            return MutantResult(mutant.name, True, plan.name, str(told[0]))
    return MutantResult(mutant.name, False, plan.name, outcome.error or "; ".join(map(str, outcome.violations)))
