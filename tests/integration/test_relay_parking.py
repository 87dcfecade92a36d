"""A broker that is down, or that refuses: what is parked, and how it comes out again."""

from __future__ import annotations

import random
import string

import pytest

from outbox.errors import BrokerUnavailable
from outbox.log.append import append, send
from outbox.relay.parking import discard, parked, retry
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import down, drain, first_occurrences, leading

SMALL = RelaySettings(page_min=10, page_max=10)


def test_nothing_is_lost_while_the_broker_is_down(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(15)])
    with leading(database, recorder, SMALL) as leader:
        leader.step()
        recorder.fault = down
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                leader.step()
    recorder.fault = lambda messages: None
    with leading(database, recorder, SMALL) as leader:
        drain(leader)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 16))


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_EVERY_S", 0)
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_SHARE", 0)


def test_a_refused_row_parks_its_key_and_the_others_go_on(database, producer, recorder):
    recorder.refuse = {"order-2"}
    for n in range(4):
        for stream in ("order-1", "order-2", "order-3"):
            append(producer, stream, event(), expected=n)
    with leading(database, recorder) as leader:
        drain(leader)
        append(producer, "order-2", event())
        drain(leader)
    assert first_occurrences(recorder.versions("order-1")) == [1, 2, 3, 4]
    assert first_occurrences(recorder.versions("order-3")) == [1, 2, 3, 4]
    assert recorder.versions("order-2") == []
    waiting = parked(producer)
    assert [(p.topic, p.key) for p in waiting] == [("outbox.order", "order-2")] * 5
    assert waiting[0].reason == "order-2 is too large"
    assert {p.reason for p in waiting[1:]} == {"waits behind an earlier row of its key"}


def test_rows_of_the_longest_names_that_are_taken_can_be_parked(database, producer, recorder):
    """PostgreSQL's index holds 2,704 bytes of them, and these cannot be compressed."""
    chosen = random.Random(1)
    letters, others = (string.ascii_letters + string.digits, [chr(c) for c in range(0x20000, 0x2A6D0)])
    category, topic = ("".join(chosen.choices(letters, k=k)) for k in (247, 249))
    stream, key = f"{category}-{''.join(chosen.choices(others, k=450))}", "".join(chosen.choices(others, k=512))
    assert len(stream.encode()) == len(key.encode()) == 2_048
    recorder.refuse = {stream, key}
    append(producer, stream, event())
    send(producer, topic, key, b"plain")
    with leading(database, recorder) as leader:
        drain(leader)
    assert {(p.topic, p.key) for p in parked(producer)} == {(f"outbox.{category}", stream), (topic, key)}


def test_refusals_make_no_row_go_out_more_than_twice(database, producer, recorder):
    recorder.refuse = {f"bad-{n}" for n in range(0, 50, 5)}
    for n in range(50):
        append(producer, f"bad-{n}", [event(), event()])
    with leading(database, recorder) as leader:
        drain(leader)
    assert len(recorder.keys()) <= 2 * 2 * 40
    assert set(recorder.keys()) == {f"bad-{n}" for n in range(50)} - recorder.refuse
    assert {p.key for p in parked(producer)} == recorder.refuse


def test_a_parked_key_is_published_in_order_once_somebody_asks(database, producer, recorder, eager):
    recorder.refuse = {"order-1", "k"}
    append(producer, "order-1", [event(), event()])
    send(producer, "t", "k", b"payload", {"h": "ä"})
    send(producer, "t", "k", None)
    with leading(database, recorder) as leader:
        drain(leader)
        recorder.refuse = set()
        drain(leader)
        assert recorder.messages == [], "nobody has asked"
        retry(producer, "outbox.order", "order-1")
        retry(producer, "t", "k")
        append(producer, "order-1", event())
        drain(leader)
        append(producer, "order-1", event())
        drain(leader)
    assert recorder.versions("order-1") == [1, 2, 3, 4]
    plain = [m for m in recorder.messages if m.key == "k"]
    assert [(m.value, list(m.headers)) for m in plain] == [(b"payload", [("h", "ä".encode())]), (None, [])]
    assert parked(producer) == []


@pytest.fixture
def refused_again(database, producer, recorder, eager):
    """A leader that has parked two events of one stream, was asked to try them again, and was refused once more."""
    recorder.refuse = {"order-1"}
    append(producer, "order-1", [event(), event()])
    with leading(database, recorder) as leader:
        drain(leader)
        retry(producer, "outbox.order", "order-1")
        drain(leader)
        yield leader


def test_a_row_refused_again_stays_and_waits_to_be_asked_again(refused_again, producer):
    assert [(p.retry, p.reason) for p in parked(producer)] == [
        (False, "order-1 is too large"),
        (False, "waits behind an earlier row of its key"),
    ]


def test_what_comes_behind_a_row_refused_again_waits_too(refused_again, producer, recorder):
    recorder.refuse = set()
    append(producer, "order-1", event())
    drain(refused_again)
    assert recorder.messages == [], "it would overtake what is parked"
    retry(producer, "outbox.order", "order-1")
    drain(refused_again)
    assert recorder.versions("order-1") == [1, 2, 3]


def test_discarding_the_refused_row_lets_those_behind_it_go(database, producer, recorder, eager):
    recorder.refuse = {"order-1"}
    append(producer, "order-1", [event(), event(), event()])
    with leading(database, recorder) as leader:
        drain(leader)
        recorder.refuse = set()
        assert discard(producer, "outbox.order", "order-1", parked(producer)[0].seq) == 1
        drain(leader)
        append(producer, "order-1", event())
        drain(leader)
    assert recorder.versions("order-1") == [2, 3, 4]


def test_a_parked_key_stays_parked_under_the_next_leader(database, producer, recorder):
    recorder.refuse = {"order-1"}
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        drain(leader)
    recorder.refuse = set()
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        drain(leader)
    assert recorder.messages == []
    assert len(parked(producer)) == 2


def test_a_crash_between_publishing_and_the_cursor_parks_once(database, producer, recorder):
    recorder.refuse = {"order-1"}
    append(producer, "order-1", event())
    append(producer, "order-2", event())
    with leading(database, recorder) as leader:
        leader._publish(leader._engine.read(leader._cursor, 10))  # and no further
    assert parked(producer) == []
    with leading(database, recorder) as leader:
        drain(leader)
    assert [p.key for p in parked(producer)] == ["order-1"]
