"""Folding: what a batch of events asks of a store, in whatever portions and however often they come."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.event import Event
from projectors.folding import Failure, Folded, Folding
from projectors.pipeline import Pipeline, Plan
from projectors.record import Change, Document, Record, Row
from projectors.sinks.memory import MemorySink, Space
from tests.unit.read_side import Log, Things, event, live, model

G = "g1"


class Projector:
    """A pipeline on a memory store, as it is after a start; ``parked`` is what outlives it."""

    def __init__(self, log: Log, space: Space, parked: set[str] | None = None, states_max: int = 100) -> None:
        self.folding = Folding(Things(), log.below, states_max)
        self.parked = set() if parked is None else parked
        sink = MemorySink(space)
        sink.prepare(G)
        plan = Plan("things", "memory", Things(), ("t.thing",))
        self.pipeline = Pipeline(plan, sink, G, self.folding, lambda failure: self.parked.add(failure.stream))

    def apply(self, events: Sequence[Event]) -> int:
        return self.pipeline.apply([e for e in events if e.stream not in self.parked])


def folded_once(log: Log, events: Sequence[Event]) -> dict[str, Folded]:
    return {f.stream: f for f in Folding(Things(), log.below).fold(events)}


def written(one: Folded) -> dict[str, tuple[int, Any]]:
    return {c.key: (c.version, None if c.record is None else c.record.columns["value"]) for c in one.changes}


# ------------------------------------------------------------------ coalescing


def test_a_batch_gives_one_change_a_key_at_the_streams_last_version() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"a": 2}, {"b": 1}, {"a": 3})
    assert written(folded_once(log, log.all())["thing-1"]) == {"thing-1#a": (4, 3), "thing-1#b": (4, 1)}


def test_keys_a_stream_no_longer_owns_become_tombstones() -> None:
    log = Log()
    first = log.add("thing-1", {"a": 1, "b": 1})
    later = log.add("thing-1", {"a": None})
    folding = Folding(Things(), log.below)
    folding.keep(folding.fold(first))
    assert written(folding.fold(later)[0]) == {"thing-1#a": (2, None)}


def test_a_deletion_buries_every_key() -> None:
    log = Log()
    log.add("thing-1", {"a": 1, "b": 1})
    gone = log.add("thing-1", {}, type="thing.deleted")
    assert written(folded_once(log, gone)["thing-1"]) == {"thing-1#a": (2, None), "thing-1#b": (2, None)}


def test_a_stream_lives_again_after_its_deletion() -> None:
    log = Log()
    log.add("thing-1", {"a": 1})
    log.add("thing-1", {}, type="thing.deleted")
    log.add("thing-1", {"b": 2})
    assert written(folded_once(log, log.all())["thing-1"]) == {"thing-1#a": (3, None), "thing-1#b": (3, 2)}


def test_a_key_that_existed_only_within_the_batch_is_buried() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"brief": 1}, {"brief": None})
    assert written(folded_once(log, log.all())["thing-1"])["thing-1#brief"] == (3, None)


def test_a_value_that_changes_and_changes_back_is_written() -> None:
    log = Log()
    log.add("thing-1", {"a": 1})
    there_and_back = log.add("thing-1", {"a": 2}, {"a": 1})
    assert written(folded_once(log, there_and_back)["thing-1"]) == {"thing-1#a": (3, 1)}


def test_records_that_stay_as_they_are_are_not_written() -> None:
    log = Log()
    log.add("thing-1", {"a": 1, "b": 1})
    again = log.add("thing-1", {"a": 1}, {"b": 1})
    assert written(folded_once(log, again)["thing-1"]) == {}


def test_a_record_that_no_store_could_be_given_stops_its_stream_only() -> None:
    class Titled(Things):
        def records(self, stream: str, state: dict[str, Any]) -> Iterable[Record]:
            yield Document(stream, "thing", state.get("title"), "")

    log = Log()
    log.add("thing-1", {"title": "a"}, {"title": None})
    log.add("thing-2", {"title": "b"})
    bad, good = Folding(Titled(), log.below).fold(log.all())
    assert [c.version for c in bad.changes] == [1]
    assert bad.failure == Failure("thing-1", 2, "thing.set", "TypeError: Document.title is None, no text")
    assert [c.version for c in good.changes] == [1] and good.failure is None


# -------------------------------------------------------------------- gap fill


def test_a_stream_that_is_not_cached_is_folded_from_the_log() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"b": 2})
    assert written(folded_once(log, log.add("thing-1", {"a": 3}))["thing-1"]) == {"thing-1#a": (3, 3)}
    assert log.reads == [{"thing-1": 3}]


def test_a_gap_behind_a_cached_state_is_filled_and_written() -> None:
    log = Log()
    folding = Folding(Things(), log.below)
    folding.keep(folding.fold(log.add("thing-1", {"a": 1})))
    log.add("thing-1", {"b": 2}, {"c": 3})
    last = log.add("thing-1", {"a": 4})
    values = {"thing-1#a": (4, 4), "thing-1#b": (4, 2), "thing-1#c": (4, 3)}
    assert written(folding.fold(last)[0]) == values
    assert log.reads == [{"thing-1": 4}]


def test_a_hole_within_a_batch_is_filled_and_written() -> None:
    log = Log()
    log.add("thing-1", {"a": 1})
    second, _, fourth = log.add("thing-1", {"b": 2}, {"c": 3}, {"d": 4})
    one = folded_once(log, [second, fourth])["thing-1"]
    assert written(one) == {"thing-1#b": (4, 2), "thing-1#c": (4, 3), "thing-1#d": (4, 4)}


def test_nothing_is_read_when_nothing_is_missing() -> None:
    log = Log()
    folding = Folding(Things(), log.below)
    for n in range(5):
        folding.keep(folding.fold(log.add("thing-1", {"a": n}) + log.add(f"thing-new{n}", {"a": n})))
    assert log.reads == []


def test_events_folded_before_are_passed_over() -> None:
    log = Log()
    folding = Folding(Things(), log.below)
    folding.keep(folding.fold(log.add("thing-1", {"a": 1}, {"a": 2})))
    assert folding.fold(log.all()) == []


def test_a_batch_that_was_not_kept_is_folded_again() -> None:
    log = Log()
    folding = Folding(Things(), log.below)
    events = log.add("thing-1", {"a": 1})
    assert folding.fold(events) == folding.fold(events) != []


def test_a_forgotten_stream_is_folded_from_its_beginning() -> None:
    log = Log()
    folding = Folding(Things(), log.below)
    folding.keep(folding.fold(log.add("thing-1", {"a": 1}, {"b": 1})))
    folding.forget("thing-1")
    assert set(written(folding.fold(log.all())[0])) == {"thing-1#a", "thing-1#b"}


def test_a_version_the_log_does_not_have_parks_the_stream() -> None:
    log = Log()
    log.add("thing-1", {"a": 1})
    one = folded_once(log, [event("thing-1", 1, {"a": 1}), event("thing-1", 3, {"a": 3})])["thing-1"]
    assert (one.state.version, one.failure.version) == (1, 3)
    assert "version 2" in one.failure.error


# ---------------------------------------------------------------- poison events


def test_a_poison_event_ends_its_stream_and_no_other() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"b": 2}, {"!": "fold"}, {"c": 3})
    log.add("thing-2", {"a": 1})
    done = folded_once(log, log.all())
    assert written(done["thing-1"]) == {"thing-1#a": (2, 1), "thing-1#b": (2, 2)}
    assert (done["thing-1"].failure.version, done["thing-1"].failure.error) == (3, "ValueError: cannot fold 3")
    assert written(done["thing-2"]) == {"thing-2#a": (1, 1)}
    assert done["thing-2"].failure is None


def test_a_state_of_which_no_records_can_be_made_is_a_poison_event() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"!": "records"}, {"!": None})
    one = folded_once(log, log.all())["thing-1"]
    assert (written(one), one.failure.version) == ({"thing-1#a": (1, 1)}, 2)


def test_a_record_without_a_canonical_form_is_a_poison_event() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"a": object()})
    one = folded_once(log, log.all())["thing-1"]
    assert (written(one), one.failure.version) == ({"thing-1#a": (1, 1)}, 2)


def test_a_poison_event_in_the_history_is_named() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"!": "fold"}, {"b": 1})
    log.add("thing-2", {"a": 1}, {"a": 2})
    done = folded_once(log, [log.streams["thing-1"][2], log.streams["thing-2"][1]])
    assert (done["thing-1"].failure.version, done["thing-1"].changes) == (2, ())
    assert written(done["thing-2"]) == {"thing-2#a": (2, 2)}


def test_a_history_of_which_no_records_can_be_made_parks_its_stream_only() -> None:
    log = Log()
    log.add("thing-1", {"!": "records"}, {"b": 1})
    log.add("thing-2", {"a": 1})
    done = folded_once(log, [log.streams["thing-1"][1], log.streams["thing-2"][0]])
    assert done["thing-1"].failure is not None
    assert written(done["thing-2"]) == {"thing-2#a": (1, 1)}


def test_a_stray_key_parks_the_stream_that_claims_it() -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"stray": 1})
    one = folded_once(log, log.all())["thing-1"]
    assert "'elsewhere' is not owned by the stream 'thing-1'" in one.failure.error
    assert written(one) == {"thing-1#a": (1, 1)}


def test_a_streams_name_alone_does_not_make_a_key_its_own() -> None:
    class Prefixed(Things):
        def records(self, stream: str, state: Any) -> list[Row]:
            return [Row(stream + "0", {})]

    one = Folding(Prefixed(), Log().below).fold([event("thing-1", 1, {"a": 1})])[0]
    assert "not owned" in one.failure.error


# -------------------------------------------------------------------- the cache


def test_the_cache_keeps_no_more_states_than_it_may() -> None:
    log = Log()
    folding = Folding(Things(), log.below, states_max=3)
    for n in range(10):
        folding.keep(folding.fold(log.add(f"thing-{n}", {"a": n})))
    kept = [f"thing-{n}" for n in range(10) if not folding.fold(log.streams[f"thing-{n}"])]
    assert kept == ["thing-7", "thing-8", "thing-9"]


def test_a_small_cache_changes_no_result() -> None:
    log, source = Log(), random.Random(4)
    batches = []
    for _ in range(60):
        batch: list[Event] = []
        for _ in range(source.randrange(1, 8)):
            batch += log.add(f"thing-{source.randrange(9)}", {source.choice("abc"): source.choice([None, 1, 2])})
        batches.append(batch)
    ends = []
    for states_max in (1, 2, 1_000):
        space = Space()
        projector = Projector(log, space, states_max=states_max)
        for batch in batches:
            projector.apply(batch)
        ends.append(live(space.generations[G]))
    assert ends == [model(log)] * 3


# --------------------------------------------- crashes, duplicates and shuffles

STREAMS = st.sampled_from(["thing-1", "thing-2", "thing-3"])
PARTS = st.sampled_from(["a", "b", "c", "d"])
PUT = st.dictionaries(PARTS, st.sampled_from([None, 1, 2]), max_size=3)
EVENTS = st.lists(st.tuples(STREAMS, st.one_of(PUT, st.just("delete"))), min_size=1, max_size=30)


def logged(drawn: list[tuple[str, Any]]) -> tuple[Log, list[Event]]:
    log, order = Log(), []
    for stream, data in drawn:
        kind = "thing.deleted" if data == "delete" else "thing.set"
        order += log.add(stream, {} if data == "delete" else data, type=kind)
    return log, order


class DiesAfter(MemorySink):
    """Applies only so many changes, then dies as a killed process does: the rest of the batch is lost."""

    def __init__(self, space: Space, changes: int, mixed: random.Random) -> None:
        super().__init__(space)
        self.left = changes
        self._mixed = mixed

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        chosen = self._mixed.sample(changes, min(self.left, len(changes)))
        super().apply(generation, chosen)
        self.left -= len(chosen)
        if len(chosen) < len(changes):
            raise KeyboardInterrupt


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(drawn=EVENTS, data=st.data())
def test_a_projector_killed_at_any_point_ends_at_the_model(drawn: list[tuple[str, Any]], data: st.DataObject) -> None:
    log, order = logged(drawn)
    space, checkpoint = Space(), 0
    mixed = random.Random(data.draw(st.integers(0, 9)))
    for _ in range(data.draw(st.integers(0, 4))):
        projector = Projector(log, space)
        projector.pipeline._sink = DiesAfter(space, data.draw(st.integers(0, 8)), mixed)
        read = checkpoint
        try:
            while read < len(order):
                size = data.draw(st.integers(1, 7))
                projector.apply(order[read : read + size])
                read += size
                if data.draw(st.booleans()):  # else it dies before the checkpoint
                    checkpoint = min(read, len(order))
        except KeyboardInterrupt:
            continue
    last = Projector(log, space)
    size = data.draw(st.integers(1, 30))
    for at in range(checkpoint, len(order), size):
        last.apply(order[at : at + size])
    assert live(space.generations[G]) == model(log)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(drawn=EVENTS, data=st.data())
def test_duplicates_and_shuffled_streams_end_at_the_model(drawn: list[tuple[str, Any]], data: st.DataObject) -> None:
    log, order = logged(drawn)
    again = order + data.draw(st.lists(st.sampled_from(order), max_size=10))
    space = Space()
    projector = Projector(log, space, states_max=data.draw(st.sampled_from([1, 100])))
    while again:
        size = data.draw(st.integers(1, 12))
        projector.apply(data.draw(st.permutations(again[:size])))
        again = again[size:]
    assert live(space.generations[G]) == model(log)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(drawn=EVENTS, bad=st.sampled_from(["fold", "records"]), data=st.data())
def test_a_parked_stream_keeps_the_records_of_its_last_good_state(
    drawn: list[tuple[str, Any]], bad: str, data: st.DataObject
) -> None:
    _, order = logged(drawn)
    at = data.draw(st.integers(0, len(order)))
    stream = data.draw(STREAMS)
    later = Log()
    order = [
        one
        for e in [*order[:at], event(stream, 0, {"!": bad}), *order[at:]]
        for one in later.add(e.stream, e.data, type=e.type)
    ]
    space, size = Space(), data.draw(st.integers(1, 10))
    projector = Projector(later, space)
    for begin in range(0, len(order), size):
        projector.apply(order[begin : begin + size])
    assert projector.parked == {stream}
    assert live(space.generations[G]) == model(later)
