"""The short, seeded part of the fault matrix: one run of each cheap fault. ``make faults`` runs all of it, many times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

import tests.faults.cases  # noqa: F401 - registers the faults
from tests.faults.faults import FAULTS
from tests.faults.matrix import Budget, run_all, try_mutants
from tests.faults.mutants import MUTANTS
from tests.faults.plan import Outcome
from tests.faults.servers import Servers, running

SEED = 1
CHEAP = [plan for plan in FAULTS.values() if plan.cheap]
LANES = 3
"""They wait for leases to run out more than they work."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of this module alone: they are hurt."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def outcomes(servers: Servers) -> Mapping[str, Outcome]:
    """All runs, several at a time."""
    budget = Budget(runs=1, seed=SEED, lanes=LANES)
    return {outcome.fault: outcome for outcome in run_all(CHEAP, servers, budget, lambda _: None)}


@pytest.mark.parametrize("name", [plan.name for plan in CHEAP])
def test_every_invariant_holds_through(name: str, outcomes: Mapping[str, Outcome]) -> None:
    assert outcomes[name].error is None
    assert [str(violation) for violation in outcomes[name].violations] == []


def test_every_sabotage_belongs_to_a_fault() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} <= FAULTS.keys()


@pytest.mark.parametrize("mutant", ["transaction boundary", "checkpoint after apply"])
def test_a_guard_taken_away_is_noticed(mutant: str, servers: Servers) -> None:
    (result,) = try_mutants([mutant], FAULTS, servers, SEED)
    assert result.caught, result.by
