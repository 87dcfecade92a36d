"""Sinks that offer sums: what a store says of itself is what its records are, after every kind of write."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from projectors.marks import SLICES, Sum, mark_of, slice_of, summed
from projectors.record import Change
from projectors.sinks.protocol import Sink, Summing
from tests.conformance.samples import KEYS, oddities, sample
from tests.conformance.sinks import STORES, Space, Store, expected, history, label, put, tombstone, where

every_kind = where(lambda store: store.sums)


def sums_of(changes: Iterable[Change]) -> dict[int, Sum]:
    """What any store must say after these changes."""
    last: dict[str, Change] = {}
    for change in changes:
        if change.key not in last or change.version > last[change.key].version:
            last[change.key] = change
    marks = [mark for change in last.values() if (mark := mark_of(change))]
    return summed((m.slice, m.mark) for m in marks)


def said(sink: Sink, generation: str) -> dict[int, Sum]:
    assert isinstance(sink, Summing)
    return dict(sink.sums(generation))


@pytest.mark.parametrize("store", STORES, ids=label)
def test_a_sink_offers_sums_if_its_store_is_said_to(store: Store, sink: Sink) -> None:
    assert isinstance(sink, Summing) == store.sums


@every_kind
def test_an_empty_store_has_no_sums(sink: Sink, g: str, kind: type) -> None:
    assert said(sink, g) == {}


@every_kind
def test_a_sum_is_what_its_records_say(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), n + 1) for n in range(3_000)]
    sink.apply(g, changes)
    sums = said(sink, g)
    assert sums == sums_of(changes)
    assert max(s.count for s in sums.values()) > 1


@every_kind
def test_odd_records_and_keys_are_summed(sink: Sink, g: str, kind: type) -> None:
    changes = [put(record, 1) for record in oddities(kind).values()]
    changes += [put(sample(kind, key, n), 1) for n, key in enumerate(KEYS)]
    sink.apply(g, changes)
    assert said(sink, g) == sums_of(changes)


@every_kind
def test_an_overwrite_replaces_a_mark(sink: Sink, g: str, kind: type) -> None:
    first = [put(sample(kind, f"k{n}", n), 1) for n in range(20)]
    second = [put(sample(kind, f"k{n}", n + 1), 2) for n in range(0, 20, 2)]
    sink.apply(g, first)
    sink.apply(g, second)
    assert said(sink, g) == sums_of([*first, *second])


@every_kind
def test_a_tombstone_takes_a_mark_away(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), 1) for n in range(20)]
    gone = [tombstone(f"k{n}", 2) for n in range(0, 20, 3)]
    sink.apply(g, changes)
    sink.apply(g, [*gone, tombstone("never was", 1)])
    assert said(sink, g) == sums_of([*changes, *gone])
    back = put(sample(kind, "k0", 5), 3)
    sink.apply(g, [back])
    assert said(sink, g) == sums_of([*changes, *gone, back])


@every_kind
def test_a_late_write_changes_no_sum(sink: Sink, g: str, kind: type) -> None:
    newer = [put(sample(kind, f"k{n}", n), 5) for n in range(10)]
    sink.apply(g, newer)
    before = said(sink, g)
    sink.apply(g, [put(sample(kind, f"k{n}", n + 1), 4) for n in range(10)])
    sink.apply(g, [tombstone(f"k{n}", 3) for n in range(10)])
    assert said(sink, g) == before == sums_of(newer)


@every_kind
def test_a_repair_marks_what_it_writes(sink: Sink, g: str, kind: type) -> None:
    wrong = [put(sample(kind, f"k{n}", n), 5) for n in range(6)]
    sink.apply(g, wrong)
    right = [put(sample(kind, "k0", 9), 5), tombstone("k1", 5)]
    sink.apply(g, [replace(c, repair=True) for c in right])
    assert said(sink, g) == sums_of([*right, *wrong[2:]])


@every_kind
def test_batches_in_any_order_any_number_of_times_sum_the_same(sink: Sink, g: str, kind: type) -> None:
    changes = history(kind, seed=11, length=120)
    again = [*changes, *changes[::3]]
    random.Random(2).shuffle(again)
    for start in range(0, len(again), 17):
        sink.apply(g, again[start : start + 17])
    assert said(sink, g) == sums_of(changes)


@every_kind
def test_generations_are_summed_apart(space: Space, sink: Sink, kind: type) -> None:
    one, two = space.generation(sink), space.generation(sink)
    sink.apply(one, [put(sample(kind, "k", 1), 1)])
    assert said(sink, two) == {}
    assert said(sink, one) == sums_of([put(sample(kind, "k", 1), 1)])


@every_kind
def test_a_scan_of_slices_gives_their_records_and_no_others(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), n + 1) for n in range(1_500)]
    gone = [tombstone(f"k{n}", 9_999) for n in range(0, 1_500, 7)]
    sink.apply(g, [*changes, *gone])
    live = expected([*changes, *gone])
    wanted = {slice_of("k1"), slice_of("k7"), slice_of("k8"), *range(0, SLICES, 9)}
    found = list(sink.scan_slices(g, wanted))
    assert {s.key: s for s in found} == {k: s for k, s in live.items() if slice_of(k) in wanted}
    assert len(found) == len({s.key for s in found}) > 100


@every_kind
def test_all_slices_together_are_the_store(sink: Sink, g: str, kind: type) -> None:
    changes = [put(sample(kind, f"k{n}", n), 1) for n in range(2_500)]
    sink.apply(g, changes)
    assert {s.key: s for s in sink.scan_slices(g, range(SLICES))} == expected(changes)
