"""The append without I/O: what is refused, what is sent, how the answer is read."""

from __future__ import annotations

import math
import uuid

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.codec import default_registry
from outbox.errors import DuplicateEvent, InvalidEvent, VersionConflict
from outbox.event import NewEvent
from outbox.log import statement as module
from outbox.log.statement import (
    Token,
    append_statement,
    encode_meta,
    expected_number,
    read_append,
    send_statement,
    spoken,
)


def event(**more) -> NewEvent:
    return NewEvent("entity.upserted", {"kind": "k", "name": "n"}, **more)


def build(*events, expected="any", stream="order-1"):
    return append_statement(stream, expected, events, default_registry())


@pytest.mark.parametrize(
    ("word", "number"), [("none", 0), ("any", -1), ("exists", -2), (0, 0), (7, 7), (2**63 - 1, 2**63 - 1)]
)
def test_expected_versions_have_numbers_and_are_spoken_as_users_write_them(word, number):
    assert expected_number(word) == number
    assert spoken(number) == str(word or "none")


@pytest.mark.parametrize("wrong", [-1, -2, 2**63, True, None, 1.0, "1", "None", "", [], b"any"])
def test_other_expected_versions_are_refused(wrong):
    with pytest.raises(InvalidEvent) as caught:
        expected_number(wrong)
    assert caught.value.field == "expected"


def test_an_answer_is_read_as_what_was_appended():
    one, two = event(), event()
    answer = read_append(build(one, two), ("written", 5, [8, 9], "77"))
    assert (answer.stream, answer.version, answer.positions) == ("order-1", 5, (8, 9))
    assert (answer.ids, answer.token, answer.repeated) == ((one.id, two.id), Token(77), False)
    assert read_append(build(one), ("repeated 5 8 77",)).repeated


def test_a_conflict_names_stream_expected_and_actual():
    with pytest.raises(VersionConflict, match=r"^stream 'order-1' is at version 3, expected none") as caught:
        read_append(build(event(), expected=0), ("conflict 3",))
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("order-1", "none", 3)
    with pytest.raises(DuplicateEvent, match="order-1"):
        read_append(build(event()), ("duplicate 3",))


def test_the_bytes_of_a_batch_are_bounded(monkeypatch):
    size = len(build(event()).values["data"])
    monkeypatch.setattr(module, "BATCH_BYTES_MAX", 2 * size)
    build(event(), event())
    with pytest.raises(InvalidEvent, match="in one append, at most"):
        build(event(), event(), event())


def test_the_field_that_is_wrong_is_named():
    for wrong, name in [({"kind": "k"}, "name"), ({"kind": "k", "name": "n", "propertis": {}}, "propertis")]:
        with pytest.raises(InvalidEvent) as caught:
            append_statement("s-1", 0, [NewEvent("entity.upserted", wrong)], default_registry())
        assert name in str(caught.value)


@pytest.mark.parametrize("id_", ["x", 1, None, str(uuid.UUID(int=1)), b"0" * 16])
def test_an_id_is_a_uuid(id_):
    with pytest.raises(InvalidEvent, match=r"not a uuid\.UUID"):
        build(event(id=id_))


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def holds(value, wrong):
    if isinstance(value, dict):
        return any(holds(k, wrong) or holds(v, wrong) for k, v in value.items())
    if isinstance(value, list):
        return any(holds(v, wrong) for v in value)
    return wrong(value)


def cannot_stand(value):
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and ("\x00" in value or any(0xD800 <= ord(c) < 0xE000 for c in value))


@given(st.dictionaries(st.text(max_size=3), json, max_size=4))
@settings(derandomize=True, max_examples=400)
def test_meta_is_taken_exactly_if_it_comes_back_the_same(meta):
    if holds(meta, cannot_stand):
        with pytest.raises(InvalidEvent):
            encode_meta(meta)
    else:
        assert orjson.loads(encode_meta(meta)) == meta


def test_meta_that_only_looks_like_nul_or_nan_is_taken():
    meta = {"a": "\\u0000", "b": None, "null": "NaN"}
    assert orjson.loads(encode_meta(meta)) == meta


def test_the_place_in_meta_is_named():
    with pytest.raises(InvalidEvent) as caught:
        encode_meta({"a": {"b": [1, math.nan]}})
    assert caught.value.field == "meta.a.b[1]"


@pytest.mark.parametrize("topic", ["", "a b", "ä", "a/b", "x" * 250, ".", "..", "a\n", "a\x00"])
def test_topics_kafka_would_refuse_are_refused(topic):
    with pytest.raises(InvalidEvent) as caught:
        send_statement(topic, "k", b"")
    assert caught.value.field == "topic"


@pytest.mark.parametrize("key", ["\x00", "\ud800", "x" * 1_025, "語" * 683])
def test_keys_postgres_could_not_hold_are_refused(key):
    with pytest.raises(InvalidEvent) as caught:
        send_statement("t", key, b"")
    assert caught.value.field == "key"


@pytest.mark.parametrize(
    "payload", ["text", 1, bytearray(b"x"), b"x" * (16 * 1024 * 1024 + 1)], ids=lambda p: type(p).__name__
)
def test_payloads_are_bytes_of_a_bounded_size(payload):
    with pytest.raises(InvalidEvent) as caught:
        send_statement("t", "k", payload)
    assert caught.value.field == "payload"


@pytest.mark.parametrize("events", [(event() for _ in range(2)), iter([event()]), None, 7])
def test_events_that_are_no_list_are_refused_by_name(events) -> None:
    """A generator was a TypeError about len()."""
    with pytest.raises(InvalidEvent, match=f"events is a {type(events).__name__}: give a NewEvent, or a list"):
        append_statement("a-1", "any", events, default_registry())
