"""Events behind which nothing that came before matters: leaving that out changes no result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.event import Event
from outbox.log.read import Row, without_void
from projectors.entity import EntityDocuments, EntityGraph, EntityProjection, EntityVectors
from projectors.folding import Folding
from projectors.model import fold_each
from projectors.pipeline import Plan
from projectors.projection import resets_of
from projectors.rows import Rows
from projectors.skipping import Skipping
from tests.unit.read_side import Log, Things, event

LINK = {"kind": "knows", "target": "entity-b", "properties": {"since": 1}}
PART = {"key": "f", "kind": "function", "name": "run", "text": "", "properties": {}, "links": []}
WHOLE = {"kind": "person", "name": "Ada", "text": "wrote", "properties": {"born": 1815}, "links": [LINK]}
ENTITY_EVENTS: dict[str, list[dict[str, Any]]] = {
    "entity.upserted": [WHOLE | {"parts": [PART]}, WHOLE | {"name": "Eve", "links": [], "parts": []}],
    "entity.patched": [{"name": "Bea", "text": None, "properties": {"x": 1}, "removed": ["born"]}],
    "entity.linked": [LINK | {"target": "entity-c"}],
    "entity.unlinked": [{"kind": "knows", "target": "entity-b"}],
    "entity.deleted": [{}],
    "person.waved": [{}],
}
ROW_EVENTS: dict[str, list[dict[str, Any]]] = {
    "row.inserted": [{"columns": {"id": 1, "a": "x", "b": None}}],
    "row.updated": [{"columns": {"id": 1, "b": b"y"}}],
    "row.deleted": [{}],
    "table.described": [{}],
}
BUILT_IN = [
    (EntityVectors(("entity",)), ENTITY_EVENTS),
    (EntityGraph(("entity",)), ENTITY_EVENTS),
    (EntityDocuments(("entity",)), ENTITY_EVENTS),
    (Rows(("orders",)), ROW_EVENTS),
]


class Whole(Things):
    """Things, of which one event (``thing.whole``) says all parts."""

    def fold(self, state: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        return super().fold(None if self.resets(event.stream, event.version, event.type) else state, event)

    def resets(self, stream: str, version: int, type: str) -> bool:
        return type == "thing.whole"


def whole(log: Log, stream: str, **parts: Any) -> list[Event]:
    return log.add(stream, parts, type="thing.whole")


def plan(projection: Any) -> Plan:
    return Plan("things", "memory", projection, ("t.thing",))


# ------------------------------------------------------- what projections say of themselves


@pytest.mark.parametrize(("projection", "events"), BUILT_IN, ids=lambda x: type(x).__name__)
def test_a_built_in_projection_says_so_of_just_the_events_that_make_it_true(
    projection: EntityProjection, events: dict[str, list[dict[str, Any]]]
) -> None:
    told = [event("entity-a", 1, data, kind) for kind, datas in events.items() for data in datas]
    states: list[Any] = [None]
    for _ in range(3):
        states += [projection.fold(state, one) for state in list(states) for one in told]
    for one in told:
        found = [projection.fold(state, one) for state in states]
        same = all(state == found[0] for state in found)
        assert projection.resets(one.stream, one.version, one.type) == same, one.type


def test_a_projection_that_does_not_say_so_resets_nothing() -> None:
    assert resets_of(Things()) is None
    assert not Skipping(Things()).resets("thing-1", 1, "thing.whole")


def test_an_event_that_is_skipped_resets_nothing() -> None:
    skipping = Skipping(Whole(), frozenset({("thing-1", 3)}))
    assert [skipping.resets("thing-1", version, "thing.whole") for version in (2, 3, 4)] == [True, False, True]
    assert skipping.resets("thing-2", 3, "thing.whole")


# ------------------------------------------------------------------------- what is left out


def rows(*streams: tuple[str, str]) -> Iterator[Row]:
    """Rows of streams: their names and the first letters of their types, w for one that says all."""
    for stream, types in streams:
        yield from ((stream, n, kind, b"") for n, kind in enumerate(types, 1))


def left(*streams: tuple[str, str], most: int = 100) -> list[tuple[str, int]]:
    return [row[:2] for row in without_void(rows(*streams), lambda _s, _v, kind: kind == "w", most)]


def test_what_a_later_event_of_the_stream_makes_void_is_left_out() -> None:
    assert left(("a", "ppwpwp"), ("b", "pp"), ("c", "w"), ("d", "pw")) == [
        *[("a", 5), ("a", 6)],
        *[("b", 1), ("b", 2)],
        ("c", 1),
        ("d", 2),
    ]


def test_without_knowing_such_events_nothing_is_left_out() -> None:
    assert len(list(without_void(rows(("a", "ppwpwp")), None))) == 6


def test_no_more_is_kept_than_it_may() -> None:
    taken = 0

    def counted() -> Iterator[Row]:
        nonlocal taken
        for row in rows(("a", "p" * 100)):
            taken += 1
            yield row

    first = next(without_void(counted(), lambda *_: False, 10))
    assert (first[1], taken) == (1, 11)
    assert left(("a", "ppppwp"), most=3) == [("a", 1), ("a", 2), ("a", 3), ("a", 5), ("a", 6)]


kinds = st.lists(st.sampled_from(["thing.set", "thing.whole", "thing.deleted"]), min_size=1, max_size=12)


@given(kinds, st.integers(1, 5), st.frozensets(st.integers(1, 12), max_size=3))
def test_the_rest_folds_to_the_same(kinds: list[str], most: int, skipped: frozenset[int]) -> None:
    log, stream = Log(), "thing-1"
    for n, kind in enumerate(kinds):
        log.add(stream, {"abc"[n % 3]: n}, type=kind)
    projection = Skipping(Whole(), frozenset((stream, version) for version in skipped))
    events = {e.version: e for e in log.all()}
    given_rows = ((e.stream, e.version, e.type) for e in log.all())
    rest = [events[row[1]] for row in without_void(given_rows, projection.resets, most)]
    every = fold_each(plan(Skipping(Bare(), projection.skipped)), stream, log.all())
    assert fold_each(plan(projection), stream, rest, projection.resets).records == every.records


class Bare(Things):
    """The same fold as that of Whole, without saying what it does."""

    def fold(self, state: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        return Whole().fold(state, event)


# --------------------------------------------------------------------------- what has failed


def test_an_event_that_fails_is_none_once_a_later_one_makes_it_void() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"!": "fold"}, {"b": 1})
    whole(log, "thing-1", c=1)
    log.add("thing-1", {"d": 1})
    found = fold_each(plan(Whole()), "thing-1", log.all(), Whole().resets)
    assert (found.failure, found.good_version, keys(found.records)) == (None, 5, ["thing-1#c", "thing-1#d"])


def test_a_projector_itself_stops_there() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"!": "fold"})
    whole(log, "thing-1", c=1)
    found = fold_each(plan(Whole()), "thing-1", log.all())
    assert found.failure is not None
    assert (found.failure.version, found.good_version) == (2, 1)
    (folded,) = Folding(Whole(), log.below).fold(log.all())
    assert folded.failure is not None
    assert folded.failure.version == 2


def test_an_event_that_says_all_and_fails_leaves_what_was_good() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"b": 1})
    log.add("thing-1", {"!": "fold"}, type="thing.whole")
    log.add("thing-1", {"c": 1})
    found = fold_each(plan(Whole()), "thing-1", log.all(), Whole().resets)
    assert found.failure is not None
    assert (found.failure.version, found.good_version, keys(found.records)) == (3, 2, ["thing-1#a", "thing-1#b"])


def test_a_projector_that_starts_behind_it_goes_on() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"!": "fold"}, {"b": 1})
    whole(log, "thing-1", c=1)
    (last,) = log.add("thing-1", {"d": 1})
    (folded,) = Folding(Whole(), log.below).fold([last])
    assert (folded.failure, folded.state.value) == (None, {"c": 1, "d": 1})


def test_one_that_starts_behind_a_failure_which_nothing_makes_void_does_not() -> None:
    log = Log()
    whole(log, "thing-1", c=1)
    log.add("thing-1", {"!": "fold"}, {"b": 1})
    (last,) = log.add("thing-1", {"d": 1})
    (folded,) = Folding(Whole(), log.below).fold([last])
    assert folded.failure is not None
    assert folded.failure.version == 2


def keys(records: Any) -> list[str]:
    return sorted(record.key for record in records)
