"""What a relay notes in the broker is read back as it was."""

from __future__ import annotations

import pytest

from outbox.errors import BrokerError
from outbox.relay.cursor import Cursor, Snapshot
from outbox.relay.note import Done, Note

CURSOR = Cursor(Snapshot("5:9:5,7"), Snapshot("8:12:8"), 44, "slot", 1 << 40, 7)


def test_a_note_is_read_back_as_it_was() -> None:
    note = Note(
        "log",
        3,
        17,
        CURSOR,
        {("outbox.order", 0): 5, ("outbox.ünï", 11): 1 << 40},
        [(4, "too large"), (5, "behind"), (6, "behind")],
        Done("t", "ключ", [1, 2]),
        ["a", "b"],
    )
    assert Note.decode(note.encode()) == note


def test_a_page_of_ten_thousand_rows_that_are_all_parked_fits_a_message() -> None:
    waiting = Snapshot.of(1 << 40, range((1 << 40) - 1_000, 1 << 40))
    parked = [((1 << 40) + n, "waits behind an earlier row of its key") for n in range(10_000)]
    places = {("outbox.a-category-with-a-long-name", n): 1 << 40 for n in range(1_000)}
    assert len(Note("log", 1, 1, Cursor(waiting, waiting), places, parked).encode()) < 500_000


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": 2}', Note("l", 1, 1, CURSOR, {}).encode()[:-9]])
def test_what_is_no_note_is_refused(data) -> None:
    with pytest.raises(BrokerError, match="note"):
        Note.decode(data)
