"""One leader a name: leases, epochs and what a leader that was paused too long can still do, which is nothing."""

from __future__ import annotations

import json
import random
import re
import string
import threading
from types import SimpleNamespace

import psycopg
import pytest

from outbox.database import connected
from outbox.errors import BrokerUnavailable, Fenced
from outbox.log.append import append, send
from outbox.relay import cursor as cursors
from outbox.relay.cursor import BEGINNING, Cursor, Snapshot
from outbox.relay.lease import STALL_S, Keeper, take, wait_for
from outbox.relay.parking import BEHIND, Parking, discard, parked, retry
from outbox.relay.poll import PollEngine
from outbox.relay.relay import Relay
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, down, drain, first_occurrences, leading, until

SMALL = RelaySettings(page_min=10, page_max=10)


@pytest.fixture
def producer(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def recorder():
    return Recorder()


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


# ----------------------------------------------------------------- windows


def test_a_large_window_goes_on_where_the_last_leader_stopped(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(95)])
    with leading(database, recorder, SMALL) as first:
        first.step()  # begins the window
        first.step()  # reads on with a cursor of the server's
    with leading(database, recorder, SMALL) as second:
        append(producer, "order-1", [event() for _ in range(5)])
        drain(second)
    assert recorder.versions("order-1") == list(range(1, 101)), "in order, and nothing twice"


def test_rows_of_a_transaction_open_at_the_start_of_a_window_come_in_a_later_one(database, producer, recorder):
    with psycopg.connect(database) as slow:
        append(slow, "slow-1", event())
        append(producer, "order-1", [event() for _ in range(15)])
        with leading(database, recorder, SMALL) as leader:
            leader.step()
            slow.commit()  # in the midst of a window that cannot see it
            append(producer, "order-1", [event() for _ in range(15)])
            drain(leader)
    assert recorder.versions("slow-1") == [1]
    assert recorder.versions("order-1") == list(range(1, 31))


def test_a_window_of_full_pages_exactly_ends(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(20)])
    with leading(database, recorder, SMALL) as leader:
        assert drain(leader) == 20
        append(producer, "order-1", event())
        assert drain(leader) == 1


def test_what_was_rolled_back_is_never_published(database, producer, recorder):
    with psycopg.connect(database) as other:
        append(other, "order-1", [event(), event()])
        other.rollback()
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        assert drain(leader) == 1


def test_a_message_carries_the_whole_event(database, producer, recorder):
    from outbox.broker.protocol import Delivery
    from outbox.codec import default_registry
    from outbox.envelope import read_event
    from outbox.log.read import read_stream

    meta = {"correlation_id": "c", "traceparent": "00-ä", "more": {"x": [1]}}
    append(producer, "order-1", event("ä", meta=meta))
    send(producer, "plain.topic", "key", b"\x00\xff", {"h": "ü"})
    with leading(database, recorder) as leader:
        drain(leader)
    message, plain = recorder.messages
    delivery = Delivery(message.topic, 0, 0, message.key, message.value, dict(message.headers))
    (stood,) = read_stream(producer, "order-1", default_registry())
    assert read_event(delivery, default_registry()) == stood
    assert (message.topic, delivery.headers["correlation_id"]) == ("outbox.order", b"c")
    assert (plain.topic, plain.key, plain.value, plain.headers) == (
        "plain.topic",
        "key",
        b"\x00\xff",
        [("h", "ü".encode())],
    )


def test_the_map_of_what_is_published_moves_with_the_cursor(database, producer, recorder):
    token = append(producer, "order-1", [event() for _ in range(3)]).token
    send(producer, "t", "k", b"")
    with leading(database, recorder) as leader:
        drain(leader)
    rows = producer.execute('SELECT topic, "offset", horizon::text::bigint FROM outbox.published ORDER BY 1').fetchall()
    assert [(t, o) for t, o, _ in rows] == [("outbox.order", 2), ("t", 3)]
    assert all(horizon > token.xid for *_, horizon in rows)


# ------------------------------------------------------- broker, refusals


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


def test_a_row_refused_again_stays_and_waits_to_be_asked_again(database, producer, recorder, eager):
    recorder.refuse = {"order-1"}
    append(producer, "order-1", [event(), event()])
    with leading(database, recorder) as leader:
        drain(leader)
        retry(producer, "outbox.order", "order-1")
        drain(leader)
    assert [(p.retry, p.reason) for p in parked(producer)] == [
        (False, "order-1 is too large"),
        (False, "waits behind an earlier row of its key"),
    ]


def test_what_comes_behind_a_row_refused_again_waits_too(database, producer, recorder, eager):
    recorder.refuse = {"order-1"}
    append(producer, "order-1", [event(), event()])
    with leading(database, recorder) as leader:
        drain(leader)
        retry(producer, "outbox.order", "order-1")
        drain(leader)
        recorder.refuse = set()
        append(producer, "order-1", event())
        drain(leader)
        assert recorder.messages == [], "it would overtake what is parked"
        retry(producer, "outbox.order", "order-1")
        drain(leader)
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


# ------------------------------------------------------------------- plans


def plan(connection, query, parameters):
    """The plan that is run once the statement is prepared: the generic one."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for n, name in enumerate(names, 1):
        query = query.replace(f"%({name})s", f"${n}")
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE p AS {query}")
    run = f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) EXECUTE p({', '.join(['%s'] * len(names))})"
    (document,) = psycopg.ClientCursor(connection).execute(run, [parameters[name] for name in names]).fetchone()
    nodes, heap = [], [document[0]["Plan"]]
    while heap:
        node = heap.pop()
        nodes.append(node)
        heap += node.get("Plans", [])
    return nodes


def test_a_poll_of_a_big_outbox_reads_only_what_is_new(database, producer):
    from outbox.relay.poll import _BEGIN, _CONTINUE, PLANNING

    producer.execute("INSERT INTO outbox.outbox (topic, key) SELECT 't', 'k' || n FROM generate_series(1, 300000) AS n")
    snapshot = Snapshot(producer.execute("SELECT pg_current_snapshot()::text").fetchone()[0])
    append(producer, "order-1", [event() for _ in range(5)])
    parameters = {
        "xmax": str(snapshot.xmax),
        "xmax_b": str(snapshot.xmax + 100),
        "in_progress": snapshot.in_progress,
        "limit": 200,
        "unlock": False,
        "last": 0,
        "prefix": "outbox",
        "b": f"{snapshot.xmax + 100}:{snapshot.xmax + 100}:",
    }
    with connected(database, **PLANNING) as reading:
        for query in (_BEGIN, _CONTINUE):
            nodes = plan(reading, query, parameters)
            assert not [n for n in nodes if n["Node Type"] == "Seq Scan"], json.dumps(nodes, indent=1)
            assert not [n for n in nodes if n["Node Type"] in ("Hash Join", "Merge Join")]
            assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 200


def test_what_waits_behind_a_refused_row_is_not_read_to_see_whether_it_may_go_on(producer):
    with producer.transaction():
        producer.execute(
            "INSERT INTO outbox.parked (relay, topic, key, seq, reason) SELECT 'relay', 't', key, n,"
            " CASE WHEN n = 1 THEN 'too large' ELSE %s END FROM generate_series(1, 5000) n, unnest(ARRAY['a', 'b']) key",
            [BEHIND],
        )
        discard(producer, "t", "b", seq=1)
        producer.execute("ANALYZE outbox.parked")
        read = (
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'outbox.parked'::regclass"
        )
        (before,) = producer.execute(read).fetchone()
        assert Parking(producer, "relay", "outbox").due() == [("t", "b")]
        (after,) = producer.execute(read).fetchone()
    assert after - before < 100


def test_the_longer_it_takes_to_look_for_parked_keys_the_seldomer_it_is_done(database, producer, monkeypatch):
    recorder, now, looks = Recorder(), [1_000.0], []
    recorder.refuse = {"order-1"}
    append(producer, "order-1", event())
    with leading(database, recorder, SMALL) as leader:
        monkeypatch.setattr("outbox.relay.leader.time", SimpleNamespace(monotonic=lambda: now[0]))
        due = Parking.due

        def slow(self):
            looks.append(now[0])
            now[0] += 2.0
            return due(self)

        monkeypatch.setattr(Parking, "due", slow)
        for _ in range(30):
            leader.step()
            now[0] += 1.0
    assert len(looks) == 1
