"""The harness's own judgement, on histories and logs written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.checks import Published, check_broker, check_log, check_store
from tests.faults.history import History, Recorder, Tried, read
from tests.faults.model import LogRow, expected
from tests.faults.stores import Held

EVENTS = [
    Tried("a", "thing-1", "entity.patched", {"properties": {"p1": 1, "p2": 2}}),
    Tried("b", "thing-1", "entity.patched", {"properties": {"p1": 1, "p2": None}}),
    Tried("c", "thing-2", "entity.patched", {"properties": {"p1": 5}}),
    Tried("d", "thing-2", "entity.deleted", {}),
]
LOG = [LogRow("thing-1", 1, "a"), LogRow("thing-1", 2, "b"), LogRow("thing-2", 1, "c"), LogRow("thing-2", 2, "d")]
IDS = {row.id for row in LOG}


def history(**outcomes: str) -> History:
    return History({e.id: e for e in EVENTS}, {e.id: outcomes.get(e.id, "ok") for e in EVENTS})  # type: ignore[misc]


def told(violations: object) -> list[str]:
    return [v.invariant for v in violations]  # type: ignore[attr-defined]


def test_the_model_drops_what_was_removed_and_what_was_deleted() -> None:
    model = expected(LOG, history())
    assert sorted(model) == ["thing-1", "thing-1#p1"]
    assert (model["thing-1#p1"].least, model["thing-1#p1"].greatest) == (1, 2)
    assert model["thing-1"].content["events"] == 2


def test_a_poisoned_stream_stands_still_in_the_model() -> None:
    poisoned = History({**history().tried, "b": Tried("b", "thing-1", "entity.patched", {"properties": {"!": 1}})})
    assert expected(LOG, poisoned)["thing-1"].greatest == 1
    assert expected(LOG, poisoned, poison=False)["thing-1"].greatest == 2


def test_a_line_that_was_cut_short_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with path.open("w") as file:
        recorder = Recorder(file)
        recorder.trying(EVENTS[:1])
        recorder.trying(EVENTS[1:2])
        recorder.ended("ok", ["a"])
        file.write('{"ok": ["b"')
    found = read([path])
    assert found.outcomes == {"a": "ok", "b": "unknown"}


def test_a_sound_log_has_nothing_against_it() -> None:
    assert told(check_log(LOG, history(), IDS)) == []


@pytest.mark.parametrize(
    ("log", "outcomes", "business", "invariants"),
    [
        (LOG[:3], {}, IDS - {"d"}, ["I1"]),
        (LOG, {"b": "failed"}, IDS, ["I4"]),
        (LOG, {}, IDS - {"a"}, ["I1"]),
        ([*LOG[:2], LogRow("thing-2", 2, "c"), LogRow("thing-2", 3, "d")], {}, IDS, ["I2"]),
        ([LogRow("thing-2", 1, "a"), *LOG[3:]], {"b": "unknown", "c": "unknown"}, {"a", "d"}, ["I4"]),
    ],
)
def test_a_log_that_is_not_sound_is_told(
    log: list[LogRow], outcomes: dict[str, str], business: set[str], invariants: list[str]
) -> None:
    assert told(check_log(log, history(**outcomes), business)) == invariants


@pytest.mark.parametrize(
    ("order", "invariants"),
    [("abcd", []), ("abcdab", []), ("bacd", ["I2"]), ("abc", ["I1"])],
)
def test_messages_may_come_again_but_not_out_of_turn(order: str, invariants: list[str]) -> None:
    by_id = {row.id: Published(row.stream, row.version, row.id) for row in LOG}
    assert told(check_broker([[by_id[id_] for id_ in order]], LOG)) == invariants


def test_once_is_not_again() -> None:
    by_id = {row.id: Published(row.stream, row.version, row.id) for row in LOG}
    assert told(check_broker([[by_id[id_] for id_ in "abcd"]], LOG, once=True)) == []
    assert told(check_broker([[by_id[id_] for id_ in "abcdb"]], LOG, once=True)) == ["I5"]


def test_a_topic_that_lost_something_may_begin_anywhere_and_turns_nothing_round() -> None:
    by_id = {row.id: Published(row.stream, row.version, row.id) for row in [*LOG, LogRow("thing-1", 3, "e")]}
    assert told(check_broker([[by_id["b"], by_id["d"]]], LOG, whole=False)) == []
    assert told(check_broker([[by_id["a"], by_id["e"]]], [*LOG, LogRow("thing-1", 3, "e")], whole=False)) == ["I2"]


def test_each_way_in_which_a_store_can_be_wrong_has_its_name() -> None:
    model = expected(LOG, history())
    right = {key: Held(one.greatest, one.content) for key, one in model.items()}
    assert told(check_store("rows", right, model)) == []
    assert told(check_store("rows", {}, model)) == ["I1"]
    assert told(check_store("rows", {**right, "thing-9": Held(1, {})}, model)) == ["I4"]
    assert told(check_store("rows", {**right, "thing-1#p1": Held(2, {"value": 9})}, model)) == ["I3"]
    assert told(check_store("rows", {**right, "thing-1": Held(2, {"events": 2, "chain": "x"})}, model)) == ["I2"]
    assert told(check_store("rows", {**right, "thing-1#p1": Held(3, {"value": 1})}, model)) == ["I3"]
