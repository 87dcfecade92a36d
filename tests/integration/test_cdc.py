"""The cdc engine: nothing lost, nothing turned round, whatever becomes of the stream or the engine."""

from __future__ import annotations

import threading
from dataclasses import replace

import psycopg
import pytest

from outbox.errors import BrokerUnavailable, DatabaseError, Fenced
from outbox.log.append import append, send
from outbox.relay.cursor import Snapshot
from outbox.relay.relay import Relay
from tests.integration.appending import event
from tests.integration.streaming import CDC, POLL, confirmed, dsn, producer, published, recorder, streaming, written  # noqa: F401
from tests.relaying import (
    Recorder,
    down,
    drain,
    drop_slots,
    first_occurrences,
    leading,
    slots,
    step_until,
    until,
)

# ------------------------------------------------------------- the stream


def test_what_stood_in_the_outbox_and_what_comes_later_is_published_once_and_in_order(dsn, producer, recorder):
    append(producer, "order-1", [event() for _ in range(120)])
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        for n in range(30):
            append(producer, "order-1", event(), expected=120 + n)
        published(leader, recorder, 150)
    assert recorder.versions("order-1") == list(range(1, 151))


def test_a_message_is_the_same_whichever_engine_carries_it(dsn, producer):
    meta = {"correlation_id": "c", "traceparent": "00-ä", "more": {"x": [1, None]}}

    def write(prefix):
        append(producer, f"order-{prefix}", event("ä", meta=meta))
        append(producer, f"order-{prefix}", event())
        send(producer, "plain.topic", "kéy", b"\x00\xff", {"h": "ü"})
        send(producer, "plain.topic", "kéy", None)

    polled, streamed = Recorder(), Recorder()
    with leading(dsn, streamed, CDC) as leader:
        streaming(leader)
        write(1)
        published(leader, streamed, 4)
        with leading(dsn, polled, replace(POLL, name="other")) as other:
            drain(other)
    assert [(m.topic, m.key, m.value, dict(m.headers)) for m in streamed.messages] == [
        (m.topic, m.key, m.value, dict(m.headers)) for m in polled.messages
    ]


def test_what_was_rolled_back_is_never_published(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        with psycopg.connect(dsn) as other:
            append(other, "order-1", [event(), event()])
            other.execute("SAVEPOINT s")
            append(other, "order-2", event())
            other.execute("ROLLBACK TO s")
            append(other, "order-3", event())
            other.commit()
            append(other, "order-3", event())
            other.rollback()
        append(producer, "order-4", event())
        published(leader, recorder, 4)
    assert recorder.keys() == ["order-1", "order-1", "order-3", "order-4"]


def test_the_next_leader_goes_on_where_the_last_one_stopped_with_the_same_slot(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(20)])
        published(leader, recorder, 20)
        made = slots(producer)
    append(producer, "order-1", [event() for _ in range(20)])
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 40)
        assert slots(producer) == made
    assert recorder.versions("order-1") == list(range(1, 41)), "in order, and nothing twice"


def test_what_the_broker_did_not_take_is_given_again(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        recorder.fault = down
        append(producer, "order-1", [event() for _ in range(15)])
        with pytest.raises(BrokerUnavailable):
            step_until(leader, lambda: False)
        with pytest.raises(BrokerUnavailable):
            leader.step()
        recorder.fault = lambda messages: None
        published(leader, recorder, 15)
    assert recorder.versions("order-1") == list(range(1, 16))


def read(leader):
    """The next page that has rows, if there is one yet."""
    page = leader._engine.read(leader._cursor, 10)
    if page.rows:
        return page
    leader._cursor = page.cursor
    return None


def test_a_crash_between_publishing_and_the_cursor_publishes_again_in_the_same_order(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(15)])
        leader._publish(until(lambda: read(leader)))  # and no further
    with leading(dsn, recorder, CDC) as leader:
        step_until(leader, lambda: len(recorder.messages) == 30)
    assert recorder.versions("order-1") == [*range(1, 16), *range(1, 16)]


# ----------------------------------------------------- cursor and feedback


def test_the_slot_is_confirmed_no_further_than_the_cursor_is_written(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        for n in range(50):
            append(producer, "order-1", event())
            page = leader._engine.read(leader._cursor, 10)
            assert confirmed(producer) <= written(producer)[4], f"read {n}, not written"
            leader._publish(page)
            leader._advance(page.cursor, {})
            leader._engine.written(page.cursor)
            leader._cursor = page.cursor
        until(lambda: confirmed(producer) == written(producer)[4])


def test_an_idle_relay_lets_go_of_the_log_that_others_write(dsn, producer, recorder):
    producer.execute("CREATE TABLE noise (x text)")
    with leading(dsn, recorder, replace(CDC, lease_s=0.3)) as leader:
        streaming(leader)
        producer.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
        (end,) = producer.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
        step_until(leader, lambda: confirmed(producer) >= end)
    assert recorder.messages == []


def test_a_paused_leader_writes_nothing_and_confirms_nothing(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as old:
        streaming(old)
        append(producer, "order-1", [event() for _ in range(5)])

        def read():
            page = old._engine.read(old._cursor, 10)
            old._cursor = old._cursor if page.rows else page.cursor  # the stream may move before the rows are there
            return page.rows and page

        page = until(read)
        with leading(dsn, recorder, CDC) as new:
            streaming(new)
            published(new, recorder, 5)
            until(lambda: confirmed(producer) == written(producer)[4])  # the server hears of it a moment later
            before = written(producer), confirmed(producer)
            with pytest.raises(Fenced):
                old._advance(page.cursor, {})
            with pytest.raises((psycopg.Error, DatabaseError)):  # the new leader has ended its stream
                until(lambda: old._engine.read(page.cursor, 10) and None)
            assert before == (written(producer), confirmed(producer))
    assert recorder.versions("order-1") == [1, 2, 3, 4, 5]


def test_a_token_of_a_transaction_without_events_is_passed_too(dsn, producer, recorder):
    """As `wait_for_generation` asks: is everything that is committed now published?"""
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        xid = producer.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
        step_until(leader, lambda: Snapshot(written(producer)[0]).sees(xid))


def test_a_transaction_is_seen_as_published_with_the_page_that_publishes_it_and_none_before(dsn, producer, recorder):
    with psycopg.connect(dsn) as slow, leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        first = append(slow, "slow-1", event()).token
        for n in range(20):
            token = append(producer, "order-1", event()).token
            step_until(leader, lambda n=n: len(recorder.messages) == n + 1)
            a = Snapshot(written(producer)[0])
            assert a.sees(token.xid)
            assert not a.sees(first.xid)
        slow.commit()
        published(leader, recorder, 21)
        assert Snapshot(written(producer)[0]).sees(first.xid)


def test_the_horizon_passes_what_is_published(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        token = append(producer, "order-1", event()).token
        query = "SELECT bool_and(horizon::text::bigint > %s) FROM outbox.published"
        published(leader, recorder, 1)
        append(producer, "order-1", event())
        step_until(leader, lambda: producer.execute(query, [token.xid]).fetchone()[0])


def test_the_ring_is_emptied_of_what_is_published_and_that_disturbs_no_stream(dsn, producer, recorder, monkeypatch):
    from tests.integration.test_relay_ring import go_to, sizes

    monkeypatch.setattr("outbox.relay.leader.TRIM_EVERY_S", 0)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        for part in range(4):
            append(producer, "order-1", [event() for _ in range(3)])
            go_to(producer, part + 1)
        step_until(leader, lambda: sum(sizes(producer)) == 0)
        append(producer, "order-1", event())
        published(leader, recorder, 13)
    assert recorder.versions("order-1") == list(range(1, 14))


def test_rows_that_only_the_stream_has_yet_to_publish_are_not_emptied(dsn, producer, recorder):
    from outbox.relay.ring import trim
    from tests.integration.test_relay_ring import go_to

    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
    append(producer, "order-1", event())
    go_to(producer, 1)
    assert trim(producer) == (0, 1)
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 1)
        assert trim(producer) == (1, 0)


# ------------------------------------------------------------ the switch


def test_switching_back_and_forth_publishes_everything_once(dsn, producer, recorder):
    total = 0
    for round_ in range(6):
        with leading(dsn, recorder, CDC if round_ % 2 else POLL) as leader:
            if round_ % 2:
                streaming(leader)
            append(producer, "order-1", [event() for _ in range(7)])
            total += 7
            published(leader, recorder, total)
        append(producer, "order-1", [event() for _ in range(7)])
        total += 7
    with leading(dsn, recorder, POLL) as leader:
        drain(leader)
        assert slots(producer) == []
    assert recorder.versions("order-1") == list(range(1, total + 1))


def test_a_window_the_poll_engine_left_open_is_finished_before_the_stream(dsn, producer, recorder):
    append(producer, "order-1", [event() for _ in range(95)])
    with leading(dsn, recorder, POLL) as leader:
        leader.step()
    append(producer, "order-1", [event() for _ in range(5)])
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 100)
    assert recorder.versions("order-1") == list(range(1, 101))


@pytest.mark.parametrize("then", ["poll", "drain", "slot lost"])
def test_a_transaction_streamed_in_part_is_published_to_its_end_without_the_stream_too(
    dsn, producer, recorder, monkeypatch, then
):
    monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 100)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(300)])
        append(producer, "order-2", event())
        published(leader, recorder, 60)
    assert written(producer)[5] is not None
    if then == "drain":
        Relay(dsn, lambda: recorder, replace(CDC, lease_s=0.5)).run(threading.Event(), drain=True)
    elif then == "slot lost":
        drop_slots(producer)
    with leading(dsn, recorder, POLL if then == "poll" else CDC) as leader:
        append(producer, "order-1", event())
        published(leader, recorder, 302)
    assert recorder.versions("order-1") == list(range(1, 302)), "in order, and nothing twice"
    assert recorder.versions("order-2") == [1]


def test_draining_takes_the_tables_and_leaves_the_slot_for_the_stream_to_go_on(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        made = slots(producer)
    producer.execute("CREATE TABLE noise AS SELECT n FROM generate_series(1, 300000) n")  # takes a stream its time
    append(producer, "order-1", [event() for _ in range(30)])
    Relay(dsn, lambda: recorder, replace(CDC, lease_s=0.5)).run(threading.Event(), drain=True)
    assert recorder.versions("order-1") == list(range(1, 31))
    with leading(dsn, recorder, CDC) as leader:
        append(producer, "order-1", event())
        published(leader, recorder, 31)
        assert slots(producer) == made
    assert recorder.versions("order-1") == list(range(1, 32)), "nothing twice"


def test_a_backlog_among_many_foreign_transactions_keeps_the_cursor_small_and_loses_nothing(
    dsn, producer, recorder, monkeypatch
):
    monkeypatch.setattr("outbox.relay.cdc.IN_PROGRESS_MAX", 20)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
    for n in range(10):
        append(producer, "order-1", event(), expected=n)
        for _ in range(15):
            producer.execute("SELECT pg_current_xact_id()")
    with leading(dsn, recorder, replace(CDC, page_min=2, page_max=2)) as leader:
        for _ in range(3):
            step_until(leader, lambda n=len(recorder.messages): len(recorder.messages) > n)
            assert len(Snapshot(written(producer)[0]).in_progress) <= 20
    with leading(dsn, recorder, POLL) as leader:
        drain(leader)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 11))
