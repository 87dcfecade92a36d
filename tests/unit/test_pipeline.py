"""One batch from events to the store: what is applied, embedded, parked and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from outbox.codec import Registry
from outbox.errors import InvalidEvent, RecordsRefused, StoreUnavailable, UnknownEventType
from projectors.decoding import Deferring, Unreadable
from projectors.folding import Failure, Folding
from projectors.model import fold_each
from projectors.pipeline import Pipeline, Plan, embedded, embedded_records
from projectors.record import Change, Row, Vector
from projectors.sinks.memory import MemorySink, Space
from tests.unit.read_side import Log, Things, event, live, model

G = "g1"


class Store(MemorySink):
    """A memory store that can be down, and that refuses some keys for good."""

    def __init__(self) -> None:
        self.space = Space()
        super().__init__(self.space)
        self.prepare(G)
        self.down = False
        self.refused: set[str] = set()
        self.given: list[Change] = []

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        self.given = list(changes)
        if self.down:
            raise StoreUnavailable("down")
        super().apply(generation, [c for c in changes if c.key not in self.refused])
        if bad := {c.key: "too odd" for c in changes if c.key in self.refused}:
            raise RecordsRefused(bad)

    @property
    def held(self) -> dict[str, Any]:
        return live(self.space.generations[G])


class Bench:
    """A pipeline on such a store; what it parks, and in which order things happened."""

    def __init__(self) -> None:
        self.log, self.store = Log(), Store()
        self.parked: list[Failure] = []
        self.held_when_parked: list[dict[str, Any]] = []
        plan = Plan("things", "memory", Things(), ("t.thing",))
        self.pipeline = Pipeline(plan, self.store, G, Folding(Things(), self.log.below), self._park)

    def _park(self, failure: Failure) -> None:
        self.parked.append(failure)
        self.held_when_parked.append(self.store.held)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_a_dead_store_did_not_take_is_given_again(bench: Bench) -> None:
    events = bench.log.add("thing-1", {"a": 1})
    bench.store.down = True
    with pytest.raises(StoreUnavailable):
        bench.pipeline.apply(events)
    bench.store.down = False
    assert bench.pipeline.apply(events) == 1
    assert bench.store.held == model(bench.log)


def test_nothing_is_parked_while_the_store_is_down(bench: Bench) -> None:
    events = bench.log.add("thing-1", {"a": 1}, {"!": "fold"})
    bench.store.down = True
    with pytest.raises(StoreUnavailable):
        bench.pipeline.apply(events)
    assert bench.parked == []


def test_a_stream_is_parked_when_its_good_events_are_in_the_store(bench: Bench) -> None:
    bench.pipeline.apply(bench.log.add("thing-1", {"a": 1}, {"!": "fold"}, {"b": 1}))
    assert [(f.stream, f.version, f.type) for f in bench.parked] == [("thing-1", 2, "thing.set")]
    assert bench.held_when_parked == [{"thing-1#a": Row("thing-1#a", {"value": 1})}]


def test_a_refused_record_parks_its_stream_at_the_first_event_of_the_batch(bench: Bench) -> None:
    bench.pipeline.apply(bench.log.add("thing-1", {"ok": 1}))
    bench.store.refused = {"thing-1#bad"}
    bench.pipeline.apply(bench.log.add("thing-1", {"bad": 1}, {"ok": 2}) + bench.log.add("thing-2", {"a": 1}))
    assert [(f.stream, f.version, f.error) for f in bench.parked] == [("thing-1", 2, "thing-1#bad: too odd")]
    assert set(bench.store.held) == {"thing-1#ok", "thing-2#a"}


def test_a_refused_stream_is_not_remembered_as_applied(bench: Bench) -> None:
    bench.store.refused = {"thing-1#bad"}
    events = bench.log.add("thing-1", {"bad": 1, "good": 1})
    bench.pipeline.apply(events)
    bench.store.refused = set()
    bench.pipeline.apply(events)
    assert bench.store.held == model(bench.log)


def test_the_changes_of_a_whole_stream_apply_at_an_equal_version_too(bench: Bench) -> None:
    bench.pipeline.apply_whole("thing-1", bench.log.add("thing-1", {"a": 1}))
    assert [c.repair for c in bench.store.given] == [True]
    bench.pipeline.apply(bench.log.add("thing-1", {"a": 2}))
    assert [c.repair for c in bench.store.given] == [False]


# -------------------------------------------------------------------- embedding


def _lengths(texts: Sequence[str]) -> Any:
    return np.array([[len(t), 1] for t in texts], dtype=np.float32)


def test_vectors_without_an_embedding_get_one_in_their_order() -> None:
    changes = [
        Change("a", "s", 1, Vector("a", "one")),
        Change("b", "s", 1, None),
        Change("c", "s", 1, Vector("c", "three", embedding=(9.0, 9.0))),
        Change("d", "s", 1, Vector("d", "seventeen")),
    ]
    done = embedded(changes, _lengths)
    assert [None if c.record is None else list(c.record.embedding) for c in done] == [[3, 1], None, [9, 9], [9, 1]]
    assert changes[0].record.embedding is None


def test_nothing_is_embedded_when_no_text_is_bare() -> None:
    def never(texts: Sequence[str]) -> Any:
        raise AssertionError(texts)

    assert embedded_records([Row("a", {}), Vector("b", "x", embedding=(1.0,))], never)[0] == Row("a", {})


# ------------------------------------------------------------ data nobody can read


def test_data_that_cannot_be_decoded_parks_the_stream_that_looks_into_it(bench: Bench) -> None:
    reason = UnknownEventType("no schema of thing.new")
    bench.log.add("thing-1", {"a": 1}, Unreadable(reason))
    bench.log.add("thing-2", {"a": 1})
    bench.pipeline.apply(bench.log.all())
    assert [(f.stream, f.version) for f in bench.parked] == [("thing-1", 2)]
    assert "no schema of thing.new" in bench.parked[0].error
    assert set(bench.store.held) == {"thing-1#a", "thing-2#a"}


def test_data_that_cannot_be_decoded_is_no_matter_to_who_does_not_look(bench: Bench) -> None:
    gone = [event("thing-1", 1, Unreadable(InvalidEvent("corrupt")), "thing.deleted")]
    bench.pipeline.apply(gone)
    assert bench.parked == []


@pytest.mark.parametrize(
    "look",
    [dict, list, len, lambda d: d["a"], lambda d: d.get("a"), lambda d: "a" in d, lambda d: {**d}, lambda d: d == {}],
)
def test_every_look_at_unreadable_data_raises(look: Any) -> None:
    with pytest.raises(InvalidEvent, match="corrupt"):
        look(Unreadable(InvalidEvent("corrupt")))


def test_a_deferring_registry_decodes_what_it_can() -> None:
    registry = Registry.load()
    data = registry.encode("entity.deleted", {"reason": "old"})
    deferring = Deferring(registry)
    assert deferring.decode("entity.deleted", data) == {"reason": "old"}
    for type_, bytes_ in (("entity.unheard", data), ("entity.deleted", data[:-2]), ("entity.deleted", b"")):
        with pytest.raises(InvalidEvent):
            dict(deferring.decode(type_, bytes_))


# -------------------------------------------------------------------- the model


@pytest.mark.parametrize("bad", ["fold", "records"])
def test_the_model_of_a_failing_stream_is_its_last_good_state(bad: str) -> None:
    log = Log()
    log.add("thing-1", {"a": 1}, {"b": 2}, {"!": bad}, {"c": 3})
    done = fold_each(Plan("things", "memory", Things(), ()), "thing-1", log.all())
    assert {r.key for r in done.records} == {"thing-1#a", "thing-1#b"}
    assert (done.good_version, done.failure.version) == (2, 3)
    assert {c.version for c in done.changes()} == {2}
