"""The short, seeded part of the fault matrix: one run of each cheap fault. ``make faults`` runs all of it, many times."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tests.faults.cases  # noqa: F401 - registers the faults
from tests.faults.faults import FAULTS
from tests.faults.matrix import try_mutants
from tests.faults.mutants import MUTANTS
from tests.faults.run import perform
from tests.faults.servers import Servers, running

SEED = 1


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of this module alone: they are hurt."""
    with running() as started:
        yield started


@pytest.mark.parametrize("name", [name for name, plan in FAULTS.items() if plan.cheap])
def test_every_invariant_holds_through(name: str, servers: Servers) -> None:
    outcome = perform(FAULTS[name], servers, SEED)
    assert outcome.error is None
    assert [str(violation) for violation in outcome.violations] == []


def test_every_sabotage_belongs_to_a_fault() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} <= FAULTS.keys()


@pytest.mark.parametrize("mutant", ["transaction boundary", "checkpoint after apply"])
def test_a_guard_taken_away_is_noticed(mutant: str, servers: Servers) -> None:
    (result,) = try_mutants([mutant], FAULTS, servers, SEED)
    assert result.caught, result.by
