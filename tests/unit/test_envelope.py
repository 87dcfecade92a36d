"""An event is the same before and after a broker."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.broker.protocol import Delivery
from outbox.codec import default_registry
from outbox.envelope import read_event, topic_of, version_in
from outbox.errors import DatabaseError, InvalidEvent, UnknownEventType
from outbox.event import Event, uuid7
from outbox.relay.rows import OutboxRow

REGISTRY = default_registry()
DATA = {"kind": "k", "name": "n"}
ENCODED = REGISTRY.encode("entity.upserted", DATA)
AT = datetime(2030, 1, 2, 3, 4, 5, 678901, UTC)


def message(meta=None, id_=None, at=AT) -> OutboxRow:
    at_us = (at - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    id_, json = str(id_ or uuid7()), b"\1" + orjson.dumps(meta or {})
    return OutboxRow(7, 9, "outbox.order", "order-1", ENCODED, 3, "entity.upserted", id_, at_us, json)


def delivered(m: OutboxRow, **headers: bytes | None) -> Delivery:
    merged = {**dict(m.headers), **headers}
    return Delivery(m.topic, 0, 7, m.key, m.value, {n: v for n, v in merged.items() if v is not None})


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5)


@given(st.dictionaries(text, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, max_size=4), st.uuids())
@settings(derandomize=True, max_examples=100)
def test_an_event_read_is_the_event_sent(meta, id_):
    event = read_event(delivered(message(meta, id_=id_)), REGISTRY)
    assert event == Event(
        "order-1", 3, "entity.upserted", REGISTRY.decode("entity.upserted", ENCODED), id_, 9, AT, meta
    )


def test_the_topic_is_the_category_and_the_key_the_stream():
    m = message()
    assert (m.topic, m.key, m.value) == ("outbox.order", "order-1", ENCODED)
    assert topic_of("p.q", "a.b") == "p.q.a.b"


def test_tracing_tools_find_their_headers():
    meta = {"correlation_id": "c-ä", "causation_id": 7, "traceparent": "00-1", "other": "x"}
    headers = dict(message(meta).headers)
    assert headers["correlation_id"] == "c-ä".encode()
    assert headers["causation_id"] == b"7"
    assert headers["traceparent"] == b"00-1"
    assert "other" not in headers
    assert "meta" not in dict(message().headers)


@given(
    st.datetimes(timezones=st.just(UTC))
    | st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=0))
)
@settings(derandomize=True, max_examples=200)
def test_a_time_travels_as_isoformat_has_it(at):
    assert dict(message(at=at).headers)["at"] == at.isoformat().encode()


@pytest.mark.parametrize("at_us", [2**63 - 1, -(2**63)], ids=["infinity", "-infinity"])
def test_a_time_without_a_date_is_told_in_one_line(at_us):
    with pytest.raises(DatabaseError, match="no calendar"):
        _ = message()._replace(at_us=at_us).headers


def test_a_plain_message_is_left_as_it_is():
    m = OutboxRow(1, None, "t", "k", b"\x00", json='\1{"a": "ä", "n": 1}'.encode())
    assert (m.topic, m.key, m.value, m.headers) == ("t", "k", b"\x00", [("a", "ä".encode()), ("n", b"1")])
    assert OutboxRow(1, None, "t", "k", None).headers == []
    assert OutboxRow(1, None, "t", "k", None, json=b"\1null").headers == []


@pytest.mark.parametrize("name", ["id", "type", "version", "position", "at"])
@pytest.mark.parametrize("value", [None, b"\xff", b"nonsense"])
def test_a_header_missing_or_wrong_makes_it_no_event(name, value):
    expected = UnknownEventType if name == "type" and value == b"nonsense" else InvalidEvent
    with pytest.raises(expected) as caught:
        read_event(delivered(message(), **{name: value}), REGISTRY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("meta", [b"\xff", b"{", b"[]", b"1"])
def test_a_meta_that_is_no_object_makes_it_no_event(meta):
    with pytest.raises(InvalidEvent):
        read_event(delivered(message(), meta=meta), REGISTRY)


@pytest.mark.parametrize("value", [None, b"", b"garbage"])
def test_a_value_that_is_no_data_makes_it_no_event(value):
    d = delivered(message())
    with pytest.raises(InvalidEvent):
        read_event(Delivery(d.topic, 0, 0, d.key, value, d.headers), REGISTRY)


def test_the_version_alone_can_be_read():
    assert version_in(delivered(message())) == 3
    with pytest.raises(InvalidEvent, match=r"outbox\.order/0@7 has no header 'version'"):
        version_in(delivered(message(), version=None))


def test_ids_are_read_whatever_their_version():
    for id_ in (uuid.uuid4(), uuid7(), uuid.UUID(int=0)):
        assert read_event(delivered(message(id_=id_)), REGISTRY).id == id_
