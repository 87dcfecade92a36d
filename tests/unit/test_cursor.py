"""Snapshots and cursors as text and numbers."""

import pytest

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
