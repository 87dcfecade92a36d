"""One leader a name: leases, epochs and what a leader that was paused too long can still do, which is nothing."""

from __future__ import annotations

import threading

import pytest

from outbox.errors import Fenced
from outbox.log.append import append
from outbox.relay import cursor as cursors
from outbox.relay.cursor import BEGINNING, Cursor, Snapshot
from outbox.relay.lease import STALL_S, Keeper, take, wait_for
from outbox.relay.parking import parked, retry
from outbox.relay.poll import PollEngine
from outbox.relay.relay import Relay
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import drain, first_occurrences, leading, until

SMALL = RelaySettings(page_min=10, page_max=10)


def standing(connection):
    """All that a leader writes."""
    return [
        connection.execute(query).fetchall()
        for query in (
            "SELECT name, epoch, a::text, b::text, last FROM outbox.relay_cursor",
            'SELECT topic, partition, "offset", horizon::text FROM outbox.published ORDER BY 1, 2',
            "SELECT topic, key, seq, retry FROM outbox.parked ORDER BY 1, 2, 3",
            "SELECT count(*) FROM outbox.outbox",
        )
    ]


# ------------------------------------------------------------------ leases


def test_a_lease_is_held_by_one(producer):
    assert take(producer, "r", "a", 60).epoch == 1
    assert take(producer, "r", "b", 60) is None
    assert take(producer, "other", "b", 60).epoch == 1


def test_who_stands_by_says_so_once(producer, capsys):
    take(producer, "r", "a", 0.5)
    assert wait_for(producer, "r", "b", 0.6, threading.Event())  # looks several times, until the first one's is over
    assert capsys.readouterr().out.count("standing by") == 1


def test_a_lease_that_ran_out_goes_to_the_next_with_a_higher_epoch(producer):
    assert take(producer, "r", "a", 0).epoch == 1
    assert until(lambda: take(producer, "r", "b", 60)).epoch == 2


def test_a_released_lease_is_free_at_once_but_only_its_holder_releases_it(producer):
    old = take(producer, "r", "a", 0)
    new = until(lambda: take(producer, "r", "b", 60))
    old.release(producer)
    assert take(producer, "r", "c", 60) is None
    new.release(producer)
    assert take(producer, "r", "c", 60).epoch == 3


def test_a_holder_takes_its_own_lease_again_after_losing_its_connection(producer):
    assert take(producer, "r", "a", 60).epoch == 1
    assert take(producer, "r", "a", 60).epoch == 2


def test_a_keeper_renews_the_lease_while_the_leader_is_busy(database, producer):
    lease = take(producer, "r", "a", 0.6)
    first = producer.execute("SELECT expires_at FROM outbox.lease").fetchone()
    with Keeper(database, lease) as keeper:
        until(lambda: producer.execute("SELECT expires_at FROM outbox.lease").fetchone() > first)
        keeper.check()
        assert take(producer, "r", "b", 60) is None


def test_a_keeper_tells_the_leader_that_it_has_been_deposed(database, producer):
    lease = take(producer, "r", "a", 0.3)
    producer.execute("UPDATE outbox.lease SET epoch = epoch + 1")
    with Keeper(database, lease) as keeper:
        with pytest.raises(Fenced, match="another process has taken over from epoch 1"):
            until(lambda: keeper.check())


def test_a_keeper_gives_up_a_leader_that_hangs(database, producer, monkeypatch):
    monkeypatch.setattr("outbox.relay.lease.STALL_S", 0.2)
    with Keeper(database, take(producer, "r", "a", 0.3)) as keeper:
        until(lambda: not keeper._thread.is_alive())
        with pytest.raises(Fenced, match="no step was finished"):
            keeper.check()


class Clock:
    """The keeper's, which goes only as it is told; ``looks``: how often the keeper's thread has looked at it."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += threading.current_thread().name == "outbox-lease"
        return self.now


def test_a_leader_that_finds_one_refused_row_after_another_does_not_hang(database, producer, recorder, monkeypatch):
    clock, keys = Clock(), [f"order-{n}" for n in range(6)]
    recorder.refuse = set(keys)
    for key in [*keys, "other-1"]:
        append(producer, key, event())

    def slow(messages):
        """Each try takes half of the time after which a leader hangs, and is seen to."""
        clock.now, looks = clock.now + STALL_S / 2, clock.looks
        until(lambda: clock.looks > looks or not any(t.name == "outbox-lease" for t in threading.enumerate()))

    monkeypatch.setattr("outbox.relay.lease.time", clock)
    recorder.fault = slow
    Relay(database, lambda: recorder, RelaySettings(lease_s=0.3)).run(threading.Event(), drain=True)
    assert producer.execute("SELECT epoch FROM outbox.lease").fetchone() == (1,), "one term"
    assert [p.key for p in parked(producer)] == keys
    assert set(recorder.keys()) == {"other-1"}


def test_a_window_that_fills_its_pages_to_the_row_does_not_look_like_the_end(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(10)])
    with leading(database, recorder, SMALL) as leader:
        assert leader.step() == 10
        append(producer, "order-1", event())
        assert leader.step() == 1
        assert leader.step() == 0


def test_an_engine_is_told_only_of_a_cursor_that_a_crash_cannot_take_back(database, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.LASTING_EVERY_S", 3600)
    told = []

    class Told(PollEngine):
        def written(self, cursor):
            told.append(cursor)

    append(producer, "order-1", [event() for _ in range(25)])
    with leading(database, recorder, SMALL, engine=Told) as leader:
        leader.step()
        first = leader._cursor
        assert drain(leader) == 15
    assert told == [first]


# ----------------------------------------------------------------- fencing


def test_a_paused_leader_publishes_at_most_again_and_writes_nothing(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(25)])
    with leading(database, recorder, SMALL) as old:
        old.step()
        with leading(database, recorder, SMALL) as new:
            new.step()
            before = standing(producer)
            with pytest.raises(Fenced):
                old.step()
            assert standing(producer) == before
            drain(new)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 26))


def test_a_paused_leader_that_is_idle_cannot_hold_the_lease(database, producer, recorder):
    settings = RelaySettings(lease_s=0.0)
    with leading(database, recorder, settings) as old, leading(database, recorder, SMALL):
        before = standing(producer), producer.execute("SELECT * FROM outbox.lease").fetchall()
        with pytest.raises(Fenced):
            until(lambda: old.step())
        assert before == (standing(producer), producer.execute("SELECT * FROM outbox.lease").fetchall())


def test_a_paused_leader_parks_nothing(database, producer, recorder):
    append(producer, "order-1", event())
    recorder.refuse = {"order-1"}
    with leading(database, recorder) as old, leading(database, recorder):
        before = standing(producer)
        with pytest.raises(Fenced):
            old.step()
        assert standing(producer) == before


def test_a_paused_leader_re_drives_nothing(database, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_EVERY_S", 0)
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_SHARE", 0)
    append(producer, "order-1", event())
    recorder.refuse = {"order-1"}
    with leading(database, recorder) as old:
        drain(old)
        recorder.refuse = set()
        with leading(database, recorder):
            retry(producer, "outbox.order", "order-1")
            before = standing(producer)
            with pytest.raises(Fenced):
                old.step()
            assert standing(producer) == before


def test_an_old_epoch_cannot_take_the_cursor_back(producer):
    cursors.load(producer, "r", 2)
    with pytest.raises(Fenced):
        cursors.load(producer, "r", 1)


def test_a_cursor_is_only_moved_with_the_lease_of_its_epoch(producer):
    lease = take(producer, "r", "a", 60)
    cursors.load(producer, "r", lease.epoch)
    there = Cursor(Snapshot("9:9:"), Snapshot("9:12:10"), 7)
    cursors.advance(producer, "r", lease.epoch, there, {("t", 0): 3}, 60)
    assert cursors.load(producer, "r", lease.epoch) == there
    with pytest.raises(Fenced):
        cursors.advance(producer, "r", lease.epoch + 1, Cursor(BEGINNING, BEGINNING), {}, 60)
    take(producer, "r", "a", 60)  # the next epoch, whose leader has not loaded the cursor yet
    with pytest.raises(Fenced):
        cursors.advance(producer, "r", lease.epoch, Cursor(BEGINNING, BEGINNING), {("t", 0): 9}, 60)
    assert producer.execute('SELECT "offset" FROM outbox.published').fetchall() == [(3,)]


def test_a_cursor_that_a_newer_epoch_has_loaded_is_left_alone_whatever_the_lease_says(producer):
    """As after somebody deleted the lease: its epochs begin anew, the cursor's do not."""
    lease = take(producer, "r", "a", 60)
    cursors.load(producer, "r", lease.epoch + 5)
    with pytest.raises(Fenced):
        cursors.advance(producer, "r", lease.epoch, Cursor(BEGINNING, BEGINNING), {("t", 0): 9}, 60)
    assert producer.execute("SELECT count(*) FROM outbox.published").fetchone() == (0,)
