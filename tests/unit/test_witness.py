"""What a projector remembers of the log by itself."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from outbox.broker.protocol import Delivery, Range
from outbox.log.identity import Identity
from projectors.horizon import Place
from projectors.witness import Mark, Witness, forget_marks

LOG = Identity(uuid.UUID(int=1), 7, 1, None, None, 7, 1)


def delivery(position: int) -> Delivery:
    headers = {"id": str(uuid.UUID(int=position)).encode(), "position": b"%d" % position, "version": b"1"}
    return Delivery("t", 0, position, "k", b"", headers)


def mark(position: int) -> Mark:
    return Mark("db", LOG.log_id, position, uuid.UUID(int=position))


def test_the_newest_event_is_the_mark_whatever_order_they_came_in() -> None:
    witness = Witness()
    witness.note("db", LOG, [delivery(3), delivery(9), delivery(5)])
    witness.note("db", LOG, [delivery(4)])
    assert witness.mark == mark(9)


def test_messages_that_are_no_events_are_no_marks() -> None:
    witness = Witness()
    witness.note(
        "db", LOG, [Delivery("t", 0, 0, "k", b"", {}), Delivery("t", 0, 1, "k", b"", {"position": b"x", "id": b""})]
    )
    assert witness.mark is None


@pytest.mark.parametrize("odd", [{"id": b"x"}, {"id": b"\xff"}, {"version": b"x"}])
def test_what_another_program_calls_an_id_is_no_mark(odd: dict[str, bytes]) -> None:
    witness = Witness()
    theirs = delivery(9)
    witness.note("db", LOG, [delivery(3), theirs._replace(headers={**theirs.headers, **odd})])
    assert witness.mark == mark(3)


def test_a_mark_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "witness" / "rows.json"
    witness = Witness(path)
    witness.note("db", LOG, [delivery(3)])
    witness.note("db", LOG, [delivery(4)])  # within the second: not written yet
    witness.keep()
    assert Witness(path).mark == mark(4)
    forget_marks(path.parent)
    assert Witness(path).mark is None


def test_a_projector_and_its_replacement_may_write_their_marks_at_the_same_moment(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    def write(_: int) -> None:
        for n in range(300):
            witness = Witness(path)
            witness.note("db", LOG, [delivery(n)])
            witness.keep()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"database": 1, "log_id": "x"}'])
def test_a_file_that_cannot_be_read_is_no_mark(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    assert Witness(path).mark is None


@pytest.mark.parametrize(
    ("place", "range_", "lost"),
    [
        (Place(5, "a"), Range("a", 0, 9), False),
        (Place(5, "a"), Range("a", 5, 5), False),
        (Place(5, None), Range("a", 0, 9), False),
        (Place(5, "a"), Range("b", 0, 9), True),
        (Place(5, "a"), Range("a", 6, 9), True),
        (Place(5, "a"), Range("a", 0, 4), True),
    ],
)
def test_a_checkpoint_is_lost_if_the_broker_lacks_what_comes_next(place: Place, range_: Range, lost: bool) -> None:
    assert place.lost(range_) is lost
