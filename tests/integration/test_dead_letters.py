"""What cannot be applied parks its stream and nothing else, and goes on in order once somebody asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox.broker.protocol import Message
from outbox.codec import Registry
from outbox.errors import NotParked
from outbox.event import Event, NewEvent
from outbox.log.read import PAGE
from projectors import ledger, operations
from tests.integration.reading import (
    Stage,
    assert_equal_to_model,
    bad,
    every_broker,
    put,
    until,
)

pytestmark = every_broker


def test_a_poison_event_parks_its_stream_only_and_keeps_its_last_good_records(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), put(b=1), bad(), put(c=1))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        stage.append("thing-1", put(d=1))
        stage.append("thing-2", put(b=1))
        stage.wait_all()
        (letter,) = stage.letters()
    assert (letter.stream, letter.version, letter.error) == ("thing-1", 3, "ValueError: cannot fold this")
    assert set(stage.held()) == {"thing-1#a", "thing-1#b", "thing-2#a", "thing-2#b"}
    assert_equal_to_model(stage)


def test_a_parked_stream_stays_parked_after_a_restart(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad())
        stage.wait_all()
    with stage.running():
        stage.append("thing-1", put(b=1))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        assert [(d.version, d.attempts) for d in stage.letters()] == [(2, 1)]
    assert_equal_to_model(stage)


def test_a_retry_asked_for_applies_the_parked_stream_in_order_once_the_projection_is_mended(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1, b=1), bad(), put(a=2), put(b=None), put(c=3))
        stage.append("thing-2", put(a=1), bad())
        stage.wait_all()
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: [d.attempts for d in stage.letters()] == [2, 2], "both were tried in vain")
        stage.projection.mended = True
        assert ledger.ask_retry(stage.connection, "rows", ["thing-1"]) == 1
        until(lambda: [d.stream for d in stage.letters()] == ["thing-2"], "the one asked for is applied")
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "the other is applied")
        stage.append("thing-1", put(d=4))
        stage.wait_all()
    assert_equal_to_model(stage)
    assert set(stage.held()) == {f"thing-{k}" for k in ("1#a", "1#c", "1#d", "1#!", "2#a", "2#!")}


def test_a_record_the_store_refuses_parks_its_stream_and_a_retry_writes_it_all(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), put(b=1, odd=1), put(b=2))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        (letter,) = stage.letters()
        assert (letter.stream, "thing-1#odd" in letter.error) == ("thing-1", True)
        assert "thing-2#a" in stage.held()
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "it is applied")
    assert_equal_to_model(stage)


@pytest.mark.parametrize("stuck", [[put(raw=1), bad()], [put(raw=1, odd=1)]], ids=["not folded", "refused"])
def test_a_retry_writes_all_of_the_stream_as_the_mended_projection_has_it(stage: Stage, stuck: list[NewEvent]) -> None:
    with stage.running():
        stage.append("thing-1", *stuck)
        stage.wait_all()
        assert len(stage.letters()) == 1
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "it is applied")
    assert_equal_to_model(stage)


def test_a_message_that_is_no_event_is_written_down_and_holds_up_nothing(stage: Stage) -> None:
    topic = stage.side.plan("rows").topics[0]
    with stage.running() as running:
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        opened = stage.side.write.broker()
        producer = opened.producer()
        strays = [Message(topic, "thing-1", b"hello"), Message(topic, "thing-9", None, [("version", b"x")])]
        producer.publish(strays)
        producer.close()
        opened.close()
        stage.append("thing-1", put(b=1))
        stage.wait_all()
        until(lambda: len(stage.letters()) == 2, "both are written down")
        running.check()
        assert {(d.stream, d.version) for d in stage.letters()} == {("thing-1", 0), ("thing-9", 0)}
        assert_equal_to_model(stage)
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "they are acknowledged")
    assert_equal_to_model(stage)


def test_a_stray_message_under_the_key_of_a_stream_that_is_not_followed_brings_it_into_no_store(stage: Stage) -> None:
    with stage.running():
        stage.append("other-1", put(a=1))
        ledger.note_stray(stage.connection, "rows", stage.serving(), "other-1", "no event")
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "it is acknowledged")
    assert stage.held() == {}


@pytest.mark.parametrize("said", ["a\0b", "\udc80"], ids=["NUL", "no UTF-8"])
def test_a_failure_parks_its_stream_only_whatever_it_says(stage: Stage, said: str) -> None:
    fold = stage.projection.fold

    def failing(state: Any, event: Event) -> Any:
        if "!" in event.data["properties"]:
            raise ValueError(said)
        return fold(state, event)

    stage.projection.fold = failing  # type: ignore[method-assign]
    with stage.running() as running:
        stage.append("thing-1", put(a=1), bad())
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        running.check()
        assert [letter.stream for letter in stage.letters()] == ["thing-1"]
    assert set(stage.held()) == {"thing-1#a", "thing-2#a"}


def test_a_message_that_is_no_event_holds_up_nothing_whatever_its_key(stage: Stage) -> None:
    topic = stage.side.plan("rows").topics[0]
    with stage.running() as running:
        opened = stage.side.write.broker()
        producer = opened.producer()
        keys = ("", "a\0b", "".join(chr(n) for n in range(0x4E00, 0x4E00 + 2_000)))
        producer.publish([Message(topic, key, b"hello") for key in keys])
        producer.close()
        opened.close()
        stage.append("thing-1", put(b=1))
        stage.wait_all()
        until(lambda: len(stage.letters()) == len(keys), "they are written down")
        running.check()
    assert_equal_to_model(stage)


def test_a_key_that_is_no_text_is_written_down_as_such(stage: Stage) -> None:
    """Another program's, which our own producers refuse."""
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        ledger.note_stray(stage.connection, "rows", stage.serving(), "a\udc80b", "no event")
        assert [letter.stream for letter in stage.letters()] == ["a\\udc80b"]


def test_an_event_of_a_schema_this_process_does_not_have_parks_its_stream(stage: Stage, tmp_path: Path) -> None:
    schema = '{"type": "record", "name": "ThingNew", "fields": [{"name": "properties", "type": {"type": "map", "values": "long"}}]}'
    (tmp_path / "thing.new.v1.avsc").write_text(schema)
    stage.registry = Registry.load(tmp_path)
    with stage.running() as running:
        stage.append("thing-1", put(a=1), NewEvent("thing.new", {"properties": {"n": 1}}), put(b=1))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        running.check()
        (letter,) = stage.letters()
    assert (letter.stream, letter.version, letter.type) == ("thing-1", 2, "thing.new")
    assert set(stage.held()) == {"thing-1#a", "thing-2#a"}
    with stage.running():  # and when the stream is read from the log
        stage.append("thing-3", put(a=1))
        stage.wait_all()
    assert stage.verify().clean


def test_a_stream_parked_and_unparked_by_one_member_is_followed_by_the_other(stage: Stage) -> None:
    with stage.running(), stage.running(relay=False):
        for n in range(12):
            stage.append(f"thing-{n}", put(a=1), bad())
        stage.wait_all()
        until(lambda: len(stage.letters()) == 12, "all are parked")
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        for n in range(12):
            stage.append(f"thing-{n}", put(b=n))
        until(lambda: stage.letters() == [], "all are applied")
        for n in range(12):
            stage.append(f"thing-{n}", put(c=n))
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_discarded_event_is_passed_over_by_projecting_rebuilding_and_verifying(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad(), put(b=1), bad(), put(c=1))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
        done = operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        assert done["skipped"] == [2]
        until(lambda: [d.version for d in stage.letters()] == [4], "the next bad one parks it")
        assert set(stage.held()) == {"thing-1#a", "thing-1#b", "thing-2#a"}
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        until(lambda: stage.letters() == [], "it goes on")
        stage.append("thing-1", put(d=1))
        stage.wait_all()
        whole = {"thing-1#a", "thing-1#b", "thing-1#c", "thing-1#d", "thing-2#a"}
        assert set(stage.held()) == whole
        assert stage.verify().clean
        assert operations.rebuild(stage.side, projector="rows")["generation"] == "g2"
        assert set(stage.held()) == whole
        assert stage.letters() == []


def test_a_discarded_event_stays_passed_over_after_a_restart(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad())
        stage.wait_all()
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        until(lambda: stage.letters() == [], "it goes on")
    with stage.running():
        stage.append("thing-1", put(b=1))
        stage.wait_all()
    assert set(stage.held()) == {"thing-1#a", "thing-1#b"}
    assert stage.letters() == []


def test_a_stream_that_was_erased_and_begins_anew_has_no_event_that_was_given_up(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad(), put(b=1))
        stage.append("thing-2", put(a=1), bad())
        stage.wait_all()
        for stream in ("thing-1", "thing-2"):
            operations.discard_dead_letter(stage.side, projector="rows", stream=stream)
        until(lambda: stage.letters() == [], "the rest is applied")
    with stage.connection.transaction():
        stage.connection.execute("SET LOCAL outbox.erasure = 'on'")
        stage.connection.execute("DELETE FROM outbox.event WHERE stream = 'thing-1'")
    operations.rebuild(stage.side, projector="rows")
    with stage.running():
        stage.append("thing-1", put(x=1), put(y=1))
        stage.append("thing-2", put(b=1))
        stage.wait_all()
    assert stage.held().keys() == {"thing-1#x", "thing-1#y", "thing-2#a", "thing-2#b"}


def test_an_event_that_is_given_up_twice_is_no_other_case(stage: Stage) -> None:
    stage.append("thing-1", put(a=1), bad())
    with stage.running():
        stage.wait_all()
    for _ in range(2):  # nobody has tried it again in between
        done = operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        assert done["skipped"] == [2]


def test_a_record_that_was_refused_for_long_is_written_once_a_later_event_corrects_it(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), put(gone=1), put(gone=None, odd=1), *(put(b=n) for n in range(PAGE)))
        stage.wait_all()
        assert len(stage.letters()) == 1
        stage.append("thing-1", put(odd=None, c=1))
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "it is applied")
        stage.wait_all()
    assert_equal_to_model(stage)


def test_what_no_single_event_causes_cannot_be_discarded(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(odd=1))
        stage.wait_all()
        with pytest.raises(NotParked, match="the store refuses"):
            operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        assert len(stage.letters()) == 1
    with pytest.raises(NotParked, match="thing-2"):
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-2")


def test_a_stray_message_is_forgotten_when_discarded(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        ledger.note_stray(stage.connection, "rows", stage.serving(), "thing-1", "no event")
        assert operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")["skipped"] == []
        assert stage.letters() == []


def test_a_dead_letter_shows_its_event_and_what_waits_behind(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1), bad(), put(b=1), put(c=1))
        stage.wait_all()
    (letter,) = operations.dead_letter(stage.side, projector="rows", stream="thing-1")
    assert (letter["version"], letter["waiting"]) == (2, 2)
    assert letter["event"]["type"] == "entity.patched"
    assert letter["event"]["data"]["properties"] == {"!": 1}
