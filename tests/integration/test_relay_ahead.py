"""Reading one page ahead: against a leader's real page after page, and an engine that counts."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from outbox.errors import BrokerUnavailable
from outbox.log.append import append
from outbox.relay.ahead import ReadAhead
from outbox.relay.cursor import Cursor, Snapshot
from outbox.relay.poll import Page
from outbox.relay.rows import OutboxRow
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, down, drain, leading

SMALL = RelaySettings(page_min=5, page_max=5)
NOTHING = Snapshot.of(3, ())
START = Cursor(NOTHING, NOTHING, 0)


class Counting:
    """Pages without end, each behind the one before; ``gate`` holds reads up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.written_at: list[int] = []
        self.reading, self.rows = 0, 1
        self.closed = False

    def read(self, cursor: Cursor, limit: int) -> Page:
        self.reading += 1
        assert self.gate.wait(30)
        self.asked.append(cursor.last)
        self.reading -= 1
        row = OutboxRow(cursor.last, None, "t", "k", None)
        return Page([row] * self.rows, replace(cursor, last=cursor.last + limit))

    def written(self, cursor: Cursor) -> None:
        assert not self.reading
        self.written_at.append(cursor.last)

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        assert not self.reading

    def close(self) -> None:
        assert not self.reading
        self.closed = True


def test_the_page_read_ahead_is_the_one_that_comes_next_and_is_read_once() -> None:
    engine = Counting()
    with closing(ReadAhead(engine)) as ahead:
        first = ahead.read(START, 5)
        ahead.begin(first, 5)
        assert ahead.read(first.cursor, 5).cursor.last == 10
        assert engine.asked == [0, 5]
        assert ahead.read(replace(START, last=10), 5).cursor.last == 15
    assert engine.closed


def test_until_it_is_published_the_same_page_is_given_again() -> None:
    engine = Counting()
    with closing(ReadAhead(engine)) as ahead:
        first = ahead.read(START, 5)
        ahead.begin(first, 5)
        assert ahead.read(START, 5) is first
        assert ahead.read(first.cursor, 5).cursor.last == 10
    assert engine.asked == [0, 5]


def test_that_there_was_nothing_some_time_ago_is_not_taken_for_the_end() -> None:
    engine = Counting()
    with closing(ReadAhead(engine)) as ahead:
        first = ahead.read(START, 5)
        engine.rows = 0
        ahead.begin(first, 5)
        ahead.written(first.cursor)
        engine.rows = 1
        assert len(ahead.read(first.cursor, 5).rows) == 1
    assert engine.asked == [0, 5, 10]


@pytest.mark.parametrize("use", ["written", "wait", "close"])
def test_nothing_is_asked_of_an_engine_that_reads(use: str) -> None:
    engine = Counting()
    ahead = ReadAhead(engine)
    first = ahead.read(START, 5)
    engine.gate.clear()
    ahead.begin(first, 5)
    threading.Timer(0.1, engine.gate.set).start()
    uses = {
        "written": lambda: ahead.written(first.cursor),
        "wait": lambda: ahead.wait(threading.Event(), 0.0),
        "close": ahead.close,
    }
    uses[use]()
    assert engine.asked == [0, 5]
    ahead.close()


def test_a_read_that_fails_says_so_when_its_page_is_asked_for() -> None:
    engine = Counting()
    with closing(ReadAhead(engine)) as ahead:
        first = ahead.read(START, 5)
        engine.read = lambda *_: (_ for _ in ()).throw(psycopg.OperationalError("gone"))  # type: ignore[method-assign]
        ahead.begin(first, 5)
        with pytest.raises(psycopg.OperationalError, match="gone"):
            ahead.read(first.cursor, 5)


def test_rows_read_ahead_are_published_once_and_in_order_when_the_broker_comes_back(database, producer) -> None:
    for n in range(23):
        append(producer, f"order-{n % 3}", event())
    recorder = Recorder()
    with leading(database, recorder, SMALL) as leader:
        assert leader.step() == 5
        recorder.fault = down
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                leader.step()
        recorder.fault = lambda messages: None
        assert drain(leader) == 18
    assert [recorder.versions(f"order-{n}") for n in range(3)] == [[*range(1, 9)], [*range(1, 9)], [*range(1, 8)]]
