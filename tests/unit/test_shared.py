"""What embedded stores share within a process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from outbox.errors import StoreUnavailable
from projectors.sinks.shared import Shared
from projectors.sinks.turns import Turns


def test_holders_of_one_path_share_what_the_first_opened_and_the_last_closes_it(tmp_path: Path) -> None:
    opened: list[Path] = []
    closed: list[object] = []
    shared: Shared[object] = Shared(closed.append)

    def open_(path: Path) -> object:
        opened.append(path)
        return object()

    with shared.hold(tmp_path / "a", open_) as one:
        with shared.hold(tmp_path / "x" / ".." / "a", open_) as other:
            assert one is other
        assert closed == []
        with shared.hold(tmp_path / "b", open_) as elsewhere:
            assert elsewhere is not one
    assert closed == [elsewhere, one]
    with shared.hold(tmp_path / "a", open_) as again:
        assert again is not one


def test_a_path_that_could_not_be_opened_may_be_tried_again(tmp_path: Path) -> None:
    shared: Shared[str] = Shared(lambda resource: None)

    def refuse(path: Path) -> str:
        raise StoreUnavailable("not yet")

    with pytest.raises(StoreUnavailable), shared.hold(tmp_path, refuse):
        pass
    with shared.hold(tmp_path, lambda path: "there") as found:
        assert found == "there"


def test_who_waits_comes_before_who_has_just_had_a_turn() -> None:
    turns = Turns(10, "busy")
    order: list[str] = []
    waiting = threading.Event()

    def other() -> None:
        waiting.set()
        with turns.take():
            order.append("other")

    thread = threading.Thread(target=other)
    with turns.take():
        thread.start()
        waiting.wait(10)
        while not turns._next.locked():  # until it stands in the queue
            pass
    with turns.take():
        order.append("again")
    thread.join(10)
    assert order == ["other", "again"]


def test_a_turn_that_does_not_come_is_an_unavailable_store() -> None:
    turns = Turns(0.05, "busy")
    with turns.take(), pytest.raises(StoreUnavailable, match="busy"), turns.take():
        pass
    with turns.take():
        pass
