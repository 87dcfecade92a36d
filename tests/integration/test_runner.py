"""A projector on real PostgreSQL and every broker: it converges, goes on, and takes turns with others."""

from __future__ import annotations

import random
from collections.abc import Callable

from outbox.settings import Projecting
from projectors import ledger
from tests.integration.reading import (
    Stage,
    assert_equal_to_model,
    deleted,
    every_broker,
    put,
    settings_of,
    staged,
)

pytestmark = every_broker


def some_events(stage: Stage, seed: int, number: int, streams: int = 12) -> None:
    """Puts, removals and deletions, in transactions of one to four events."""
    source = random.Random(seed)
    done = 0
    while done < number:
        events = [
            deleted() if source.random() < 0.1 else put(**{source.choice("abc"): source.choice([None, 1, 2, "x"])})
            for _ in range(source.randrange(1, 5))
        ]
        stage.append(f"thing-{source.randrange(streams)}", *events)
        done += len(events)


def test_the_store_becomes_equal_to_the_model(stage: Stage) -> None:
    some_events(stage, seed=1, number=200)
    with stage.running():
        some_events(stage, seed=2, number=300)
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_projector_started_again_goes_on_from_its_checkpoint(stage: Stage) -> None:
    for seed in range(3):
        with stage.running():
            some_events(stage, seed=seed, number=60)
            stage.wait_all()
        some_events(stage, seed=100 + seed, number=30)
    with stage.running():
        stage.wait_all()
    assert_equal_to_model(stage)
    assert [g.name for g in ledger.generations(stage.connection, "rows")] == ["g1"]


def test_members_that_join_and_leave_lose_nothing(stage: Stage) -> None:
    with stage.running():
        some_events(stage, seed=1, number=100)
        stage.wait_all()
        with stage.running(relay=False) as second:
            for seed in range(2, 6):
                some_events(stage, seed=seed, number=50)
            stage.wait_all()
            second.check()
            some_events(stage, seed=7, number=100)
        some_events(stage, seed=8, number=50)
        stage.wait_all()
    assert_equal_to_model(stage)
    assert stage.letters() == []


def test_projectors_go_at_their_own_speed_from_the_same_events(
    broker: str, database: str, address: Callable[[str], str]
) -> None:
    projectors = {
        "rows": Projecting(projection="parts", store="postgres"),
        "more": Projecting(projection="parts", store="postgres", batch=1),
    }
    with staged(settings_of(broker, database, address, projectors=projectors)) as stage:
        some_events(stage, seed=3, number=60)
        with stage.running():
            some_events(stage, seed=4, number=60)
            stage.wait_all()
        assert_equal_to_model(stage, "rows")
        assert_equal_to_model(stage, "more")
