"""A rebuild reads of a stream what counts, and store, log and verification agree about the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outbox.codec import Registry
from outbox.event import Event, NewEvent
from projectors import operations
from projectors.verify import Verifier
from tests.integration.reading import Parts, Stage, bad, put, settings_of, staged, until


class Whole(Parts):
    """Parts, of which an upsert says all."""

    def fold(self, state: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        return super().fold(None if event.type == "entity.upserted" else state, event)

    def resets(self, stream: str, version: int, type: str) -> bool:
        return type == "entity.upserted"


def whole(**parts: Any) -> NewEvent:
    return NewEvent("entity.upserted", {"kind": "thing", "name": "t", "properties": parts})


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    with staged(settings_of("local", database, address), Whole()) as stage:
        yield stage


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many events of each type were decoded."""
    counted: Counter[str] = Counter()
    decode = Registry.decode

    def count(registry: Registry, kind: str, data: bytes) -> dict[str, Any]:
        counted[kind] += type(registry) is Registry  # its children ask it
        return decode(registry, kind, data)

    monkeypatch.setattr(Registry, "decode", count)
    return counted


def rebuilt(stage: Stage) -> str:
    return operations.rebuild(stage.side, projector="rows", check=False)["generation"]


def test_what_is_void_is_not_even_decoded(stage: Stage, decoded: Counter[str]) -> None:
    for n in range(20):
        stage.append(f"thing-{n}", put(a=1), whole(b=1), put(c=1), whole(d=n), put(e=1))
    rebuilt(stage)
    assert decoded == {"entity.upserted": 20, "entity.patched": 20}
    assert set(stage.held()) == {f"thing-{n}#{part}" for n in range(20) for part in "de"}
    decoded.clear()
    assert stage.verify().clean
    assert decoded == {"entity.upserted": 20, "entity.patched": 20}


def test_keys_that_a_running_projector_wrote_on_the_way_are_buried(stage: Stage) -> None:
    with stage.running():
        for event in (put(a=1), put(b=1), whole(c=1), put(d=1)):
            stage.append("thing-1", event)
            stage.wait_all()
    assert set(stage.held()) == {"thing-1#c", "thing-1#d"}
    assert stage.verify().clean


def test_a_failure_that_is_void_parks_no_new_generation_and_no_later_event(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad(), whole(b=1))
        stage.wait_all()
        assert [letter.version for letter in stage.letters()] == [2]
    assert set(stage.held()) == {"thing-1#a"}
    assert rebuilt(stage) == "g2"
    assert (stage.letters(), set(stage.held())) == ([], {"thing-1#b"})
    with stage.running():
        stage.append("thing-1", put(c=1))
        stage.wait_all()
    assert (stage.letters(), set(stage.held())) == ([], {"thing-1#b", "thing-1#c"})
    assert stage.verify().clean


def test_a_failure_that_is_void_does_not_park_its_stream_when_a_later_one_is_given_up(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad(), whole(b=1))
        stage.wait_all()
        assert [rebuilt(stage) for _ in range(2)] == ["g2", "g3"], "the one that it parked is gone"
        stage.append("thing-1", bad(), put(c=1))
        stage.wait_all()
        assert [letter.version for letter in stage.letters()] == [4]
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        until(lambda: all(letter.attempts > 1 or letter.version != 4 for letter in stage.letters()), "it is tried")
    assert stage.letters() == []
    assert set(stage.held()) == {"thing-1#b", "thing-1#c"}
    assert stage.verify().clean


def test_an_upsert_that_fails_leaves_the_last_good_records(stage: Stage) -> None:
    stage.append("thing-1", put(a=1), whole(b=1), whole(**{"!": 1}), put(c=1))
    rebuilt(stage)
    assert [letter.version for letter in stage.letters()] == [3]
    assert set(stage.held()) == {"thing-1#b"}


def test_an_upsert_that_is_given_up_makes_nothing_void(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), whole(**{"!": 1}), put(c=1))
        stage.wait_all()
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        until(lambda: stage.letters() == [], "it goes on")
        stage.wait_all()
    assert set(stage.held()) == {"thing-1#a", "thing-1#c"}
    assert rebuilt(stage) == "g2"
    assert set(stage.held()) == {"thing-1#a", "thing-1#c"}
    assert stage.verify().clean


def test_a_store_that_is_behind_is_no_difference_though_a_newer_event_makes_void_what_it_holds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
    stage.append("thing-1", put(a=2))  # which nobody has applied when verify looks first

    def meanwhile(_: Verifier) -> None:
        with stage.running():
            stage.wait_all()
        stage.append("thing-1", whole(b=1))  # which nobody has applied when it looks again

    monkeypatch.setattr(Verifier, "_let_settle", meanwhile)
    assert stage.verify().differences == []
    assert set(stage.held()) == {"thing-1#a"}
