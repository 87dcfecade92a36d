"""Snapshots and cursors as text and numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.relay.cursor import BEGINNING, Cursor, Snapshot


@pytest.mark.parametrize(
    ("text", "xmin", "xmax", "in_progress"),
    [
        ("3:3:", 3, 3, []),
        ("10:20:10,14,15", 10, 20, ["10", "14", "15"]),
        ("9:10:9", 9, 10, ["9"]),
        ("8589934592:8589934600:8589934593", 2**33, 2**33 + 8, ["8589934593"]),
    ],
)
def test_a_snapshot_is_read_as_postgres_writes_it(text, xmin, xmax, in_progress):
    snapshot = Snapshot(text)
    assert (snapshot.xmin, snapshot.xmax, snapshot.in_progress) == (xmin, xmax, in_progress)


def test_a_window_is_open_until_its_ends_meet():
    later = Snapshot("10:20:10")
    assert Cursor(BEGINNING, later, 5).open
    assert not Cursor(later, later).open


def test_the_beginning_is_before_every_transaction():
    assert (BEGINNING.xmin, BEGINNING.xmax, BEGINNING.in_progress) == (3, 3, [])


@pytest.mark.parametrize(
    ("text", "valid"), [("25340:25339:", "25340:25340:"), ("10:20:10,14", "10:20:10,14"), ("9:20:10,14", "10:20:10,14")]
)
def test_the_snapshot_of_a_new_slot_becomes_one_that_postgres_takes_back(text, valid):
    assert Snapshot.exported(text) == Snapshot(valid)


SNAPSHOTS = st.builds(
    lambda waiting, beyond: Snapshot.of(max(waiting, default=3) + beyond, waiting),
    st.sets(st.integers(3, 60), max_size=12),
    st.integers(1, 20),
)


@given(SNAPSHOTS, SNAPSHOTS)
def test_a_union_sees_what_either_sees_and_nothing_else(one, other):
    union = one.union(other)
    for xid in range(3, 100):
        assert union.sees(xid) == (one.sees(xid) or other.sees(xid))


@given(SNAPSHOTS, st.sets(st.integers(3, 90), max_size=20))
def test_including_adds_these_transactions_and_no_others(snapshot, xids):
    including = snapshot.including(xids, most=1_000)
    for xid in range(3, 100):
        assert including.sees(xid) == (snapshot.sees(xid) or xid in xids)


@given(SNAPSHOTS, st.sets(st.integers(3, 90), max_size=20), st.integers(0, 30))
def test_including_never_lists_more_than_it_may_nor_sees_too_much(snapshot, xids, most):
    including = snapshot.including(xids, most)
    assert len(including.in_progress) <= max(most, len(snapshot.in_progress))
    for xid in range(3, 100):
        assert including.sees(xid) <= (snapshot.sees(xid) or xid in xids)
        assert including.sees(xid) >= snapshot.sees(xid)
