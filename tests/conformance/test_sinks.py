"""What every sink must do, tried on the real store with every kind of record it takes."""

from __future__ import annotations

import random
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.errors import StoreError, StoreUnavailable
from projectors.sinks.protocol import Sink
from tests.conformance.samples import KEYS, oddities, sample
from tests.conformance.sinks import (
    STORES,
    Space,
    Store,
    change_of,
    expected,
    held,
    history,
    label,
    put,
    tombstone,
    where,
)

every_kind = where(lambda store: True)
on_servers = pytest.mark.parametrize("store", [s for s in STORES if s.unreachable], ids=label)
silenced = pytest.mark.parametrize("store", [s for s in STORES if s.silent], ids=label)

ANSWERS_WITHIN_S = 30.0
"""A store that is not there must be told from one that is slow within this time."""


@every_kind
def test_what_is_applied_is_read_back(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), n + 1) for n in range(20)]
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)


@every_kind
def test_odd_values_are_read_back_unchanged(sink: Sink, g: str, kind: type) -> None:
    odd = oddities(kind)
    changes = [put(record, 1) for record in odd.values()]
    sink.apply(g, changes)
    found, wanted = held(sink, g), expected(changes)
    bent = [name for name, record in odd.items() if found.get(record.key) != wanted[record.key]]
    assert bent == []
    assert found.keys() == wanted.keys()


@every_kind
def test_odd_values_replace_each_other(sink: Sink, g: str, kind: type) -> None:
    odd = list(oddities(kind).values())
    first = [put(sample(kind, record.key, n), 1) for n, record in enumerate(odd)]
    second = [put(record, 2) for record in odd]
    third = [put(sample(kind, record.key, n + 1), 3) for n, record in enumerate(odd)]
    sink.apply(g, first)
    sink.apply(g, second)
    assert held(sink, g) == expected(second)
    sink.apply(g, third)
    assert held(sink, g) == expected(third)


@every_kind
def test_odd_keys_stay_apart(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, key, n), n + 1) for n, key in enumerate(KEYS)]
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)
    for change in changes:
        assert held(sink, g, [change.key]) == expected([change])
    sink.apply(g, [tombstone(key, 100) for key in KEYS[::2]])
    assert held(sink, g) == expected(changes[1::2])


@every_kind
def test_a_newer_version_replaces_all_of_the_older(sink: Sink, g: str, kind: type) -> None:
    for n in range(6):
        sink.apply(g, [put(sample(kind, "k", n), n + 1)])
        assert held(sink, g) == expected([put(sample(kind, "k", n), n + 1)])


@every_kind
def test_an_older_version_never_overwrites(sink: Sink, g: str, kind: type) -> None:
    newer, older = put(sample(kind, "k", 5), 5), put(sample(kind, "k", 4), 4)
    sink.apply(g, [newer])
    sink.apply(g, [older])
    sink.apply(g, [tombstone("k", 3)])
    assert held(sink, g) == expected([newer])


@every_kind
def test_an_equal_version_changes_nothing(sink: Sink, g: str, kind: type) -> None:
    first = put(sample(kind, "k", 1), 5)
    sink.apply(g, [first])
    sink.apply(g, [put(sample(kind, "k", 2), 5)])
    sink.apply(g, [tombstone("k", 5)])
    assert held(sink, g) == expected([first])


@every_kind
def test_a_repair_replaces_what_stands_at_its_own_version(sink: Sink, g: str, kind: type) -> None:
    wrong = [put(sample(kind, f"k{n}", n), 5) for n in range(4)]
    sink.apply(g, [*wrong, tombstone("gone", 5)])
    right = put(sample(kind, "k0", 7), 5)
    back = put(sample(kind, "gone", 8), 5)
    sink.apply(g, [replace(c, repair=True) for c in (right, tombstone("k1", 5), back)])
    assert held(sink, g) == expected([right, back, *wrong[2:]])
    sink.apply(g, [put(sample(kind, "k1", 9), 5)])  # the repair's tombstone is a mark like any other
    assert held(sink, g) == expected([right, back, *wrong[2:]])


@every_kind
def test_a_repair_never_beats_a_newer_version(sink: Sink, g: str, kind: type) -> None:
    newer = put(sample(kind, "k", 6), 6)
    sink.apply(g, [newer, tombstone("gone", 6)])
    late = [put(sample(kind, "k", 5), 5), put(sample(kind, "gone", 5), 5)]
    sink.apply(g, [replace(c, repair=True) for c in late])
    assert held(sink, g) == expected([newer])


@every_kind
def test_a_key_repeated_in_one_batch_ends_at_its_greatest_version(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n % 3}", n), n + 1) for n in range(30)]
    changes += [tombstone("k1", 100), put(sample(kind, "k2", 50), 50), tombstone("k2", 40)]
    random.Random(1).shuffle(changes)
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)


@every_kind
def test_a_tombstone_removes(sink: Sink, g: str, kind: type) -> None:
    kept = put(sample(kind, "kept", 1), 1)
    sink.apply(g, [put(sample(kind, "k", 1), 1), kept])
    sink.apply(g, [tombstone("k", 2)])
    assert held(sink, g) == expected([kept])
    assert held(sink, g, ["k", "kept"]) == expected([kept])


@every_kind
def test_a_tombstone_beats_an_older_write_that_comes_later(sink: Sink, g: str, kind: type) -> None:
    sink.apply(g, [put(sample(kind, "k", 1), 1)])
    sink.apply(g, [tombstone("k", 3)])
    sink.apply(g, [put(sample(kind, "k", 2), 2)])
    sink.apply(g, [put(sample(kind, "k", 3), 3)])
    assert held(sink, g) == {}


@every_kind
def test_a_delete_may_come_before_the_create(sink: Sink, g: str, kind: type) -> None:
    sink.apply(g, [tombstone("k", 2)])
    sink.apply(g, [put(sample(kind, "k", 1), 1)])
    assert held(sink, g) == {}


@every_kind
def test_a_newer_version_lives_again_after_a_tombstone(sink: Sink, g: str, kind: type) -> None:
    again = put(sample(kind, "k", 3), 3)
    sink.apply(g, [put(sample(kind, "k", 1), 1)])
    sink.apply(g, [tombstone("k", 2)])
    sink.apply(g, [again])
    sink.apply(g, [tombstone("k", 2), put(sample(kind, "k", 1), 1)])
    assert held(sink, g) == expected([again])
    sink.apply(g, [tombstone("k", 4)])
    assert held(sink, g) == {}


@every_kind
def test_a_newer_tombstone_raises_the_mark_of_an_older(sink: Sink, g: str, kind: type) -> None:
    sink.apply(g, [tombstone("k", 2)])
    sink.apply(g, [tombstone("k", 5)])
    sink.apply(g, [tombstone("k", 3)])
    sink.apply(g, [put(sample(kind, "k", 4), 4)])
    assert held(sink, g) == {}


@every_kind
def test_an_empty_batch_changes_nothing(sink: Sink, g: str, kind: type) -> None:
    sink.apply(g, [])
    assert held(sink, g) == {}
    sink.apply(g, [put(sample(kind, "k", 1), 1)])
    sink.apply(g, [])
    assert held(sink, g) == expected([put(sample(kind, "k", 1), 1)])


@every_kind
def test_a_batch_applied_again_changes_nothing(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), n + 1) for n in range(50)] + [tombstone("k7", 100), tombstone("x", 1)]
    for _ in range(3):
        sink.apply(g, changes)
        assert held(sink, g) == expected(changes)


@every_kind
def test_a_batch_applied_in_part_may_be_applied_again(sink: Sink, g: str, kind: type) -> None:
    changes = history(kind, seed=3, length=60)
    sink.apply(g, changes[:23])
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)


@every_kind
def test_a_batch_larger_than_the_store_takes_is_split(store: Store, sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), 1) for n in range(store.over_batch)]
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)
    sink.apply(g, changes)
    later = [put(sample(kind, f"k{n}", n + 1), 2) if n % 2 else tombstone(f"k{n}", 2) for n in range(store.over_batch)]
    sink.apply(g, later)
    assert held(sink, g) == expected(later)
    every_key = [change.key for change in changes]
    assert held(sink, g, every_key) == expected(later)


@every_kind
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_changes_in_any_order_any_number_of_times_end_the_same(
    space: Space, sink: Sink, kind: type, data: st.DataObject
) -> None:
    generation = space.generation(sink)
    keys = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=25))
    changes = [change_of(kind, f"k{k}", version) for k, version in keys]
    again = data.draw(st.permutations(changes + changes[::2]))
    cut = data.draw(st.integers(0, len(again)))
    for batch in (again[:cut], again[cut:]):
        sink.apply(generation, batch)
    assert held(sink, generation) == expected(changes)
    sink.drop(generation)


@every_kind
def test_a_zombie_that_was_opened_earlier_changes_nothing(space: Space, sink: Sink, g: str, kind: type) -> None:
    changes = history(kind, seed=5, length=80)
    with space.open() as zombie:
        zombie.apply(g, changes[:10])
        sink.apply(g, changes)
        zombie.apply(g, changes[:40])
        assert held(sink, g) == expected(changes)
        assert held(zombie, g) == expected(changes)


@every_kind
def test_what_was_applied_is_there_after_opening_again(store: Store, space: Space, kind: type) -> None:
    changes = history(kind, seed=7, length=40)
    with space.open() as sink:
        g = space.generation(sink)
        sink.apply(g, changes[:20])
    with space.open() as sink:
        sink.apply(g, changes[10:])
        sink.apply(g, changes[:20])
    with space.open() as sink:
        assert held(sink, g) == expected(changes)


@every_kind
def test_generations_are_apart(space: Space, sink: Sink, kind: type) -> None:
    one, two = space.generation(sink), space.generation(sink)
    in_one = [put(sample(kind, f"k{n}", n), 5) for n in range(5)] + [tombstone("k9", 9)]
    in_two = [put(sample(kind, f"k{n}", n + 1), 2) for n in range(3, 12)]
    sink.apply(one, in_one)
    assert held(sink, two) == {}
    sink.apply(two, in_two)
    assert held(sink, one) == expected(in_one)
    assert held(sink, two) == expected(in_two)
    sink.drop(one)
    assert held(sink, two) == expected(in_two)


@every_kind
def test_a_dropped_generation_comes_back_empty_and_without_marks(sink: Sink, g: str, kind: type) -> None:
    sink.apply(g, [put(sample(kind, "k", 1), 9), tombstone("gone", 9)])
    sink.drop(g)
    sink.prepare(g)
    assert held(sink, g) == {}
    again = [put(sample(kind, "k", 2), 1), put(sample(kind, "gone", 2), 1)]
    sink.apply(g, again)
    assert held(sink, g) == expected(again)


@every_kind
def test_prepare_switch_and_drop_may_be_repeated(space: Space, sink: Sink, kind: type) -> None:
    one, two = space.generation(sink), space.generation(sink)
    change = put(sample(kind, "k", 1), 1)
    sink.apply(two, [change])
    for generation in (one, one, two, two):
        sink.prepare(generation)
        sink.switch(generation)
    sink.drop(one)
    sink.drop(one)
    sink.drop("never_was")
    sink.prepare(two)
    assert held(sink, two) == expected([change])


@every_kind
def test_what_the_alias_leads_to_can_be_dropped_and_another_be_shown(space: Space, sink: Sink, kind: type) -> None:
    """Its projector was moved to another store, and back."""
    one, change = space.generation(sink), put(sample(kind, "k", 1), 1)
    sink.apply(one, [change])
    sink.switch(one)
    sink.drop(one)
    with pytest.raises(StoreError):
        list(sink.scan(one))
    two = space.generation(sink)
    sink.apply(two, [change])
    sink.switch(two)
    assert held(sink, two) == expected([change])


@every_kind
def test_a_generation_that_is_not_there_is_not_taken_for_an_empty_one(sink: Sink, g: str, kind: type) -> None:
    change = put(sample(kind, "a", 1), 1)
    with pytest.raises(StoreError):
        sink.apply("never", [change])
    with pytest.raises(StoreError):
        list(sink.scan("never"))
    with pytest.raises(StoreError):
        list(sink.scan("never", ["a"]))
    sink.drop(g)
    with pytest.raises(StoreError):
        list(sink.scan(g))


@every_kind
def test_scan_gives_only_the_keys_asked_for(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), n + 1) for n in range(10)]
    sink.apply(g, [*changes, tombstone("k3", 99)])
    assert held(sink, g, ["k2", "k3", "k5", "unknown", "k5"]) == expected([changes[2], changes[5]])
    assert held(sink, g, []) == {}


@on_servers
def test_a_store_that_is_not_there_is_said_to_be_unavailable_soon(store: Store, tmp_path: Path) -> None:
    space = Space(store, store.unreachable(tmp_path))
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable), space.open() as sink:
        sink.prepare("g1")
        sink.apply("g1", [put(sample(store.kinds[0], "k", 1), 1)])
    assert time.monotonic() - began_s < ANSWERS_WITHIN_S


@silenced
def test_a_store_that_does_not_answer_is_said_to_be_unavailable_soon(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        space = Space(store, store.silent(listener.getsockname()[1]))
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable), space.open() as sink:
            sink.prepare("g1")
        assert time.monotonic() - began_s < ANSWERS_WITHIN_S
