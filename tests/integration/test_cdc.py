"""The cdc engine: nothing lost, nothing turned round, whatever becomes of its slot; and little held in memory."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest

from deploy.local.local import Local
from outbox.database import connected
from outbox.errors import BrokerUnavailable, DatabaseError, Fenced, SettingsError
from outbox.log.append import append, send
from outbox.log.migrate import migrate
from outbox.relay import slot as slotting
from outbox.relay.cursor import Snapshot
from outbox.relay.relay import Relay
from outbox.relay.replication import Replication
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
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
    without_slots,
)

CDC = RelaySettings(engine="cdc", page_min=10, page_max=50)
POLL = replace(CDC, engine="poll")


@pytest.fixture
def dsn(database):
    with without_slots(database):
        yield database


@pytest.fixture
def producer(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def recorder():
    return Recorder()


def streaming(leader):
    """Step until the slot is made and streamed from."""
    step_until(leader, lambda: leader._engine._streaming)
    return leader


def published(leader, recorder, count):
    step_until(leader, lambda: len(recorder.messages) >= count)


def written(connection):
    query = "SELECT a::text, b::text, last, slot, coalesce(lsn - '0/0', 0)::bigint, part FROM outbox.relay_cursor"
    return connection.execute(query).fetchone()


def confirmed(connection):
    query = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = current_database()"
    return int(connection.execute(query).fetchone()[0])


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
        page = until(lambda: (p := old._engine.read(old._cursor, 10)).rows and p)
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


# ----------------------------------------------------- large transactions


@pytest.fixture
def streams_early(producer):
    """Transactions beyond 64 kB are streamed before they commit."""
    producer.execute(f"ALTER DATABASE \"{producer.info.dbname}\" SET logical_decoding_work_mem = '64kB'")


def test_a_streamed_transaction_is_published_after_its_commit_without_what_it_rolled_back(
    dsn, producer, recorder, streams_early
):
    with psycopg.connect(dsn) as large, leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        for n in range(40):
            append(large, "large-1", [event("x" * 100) for _ in range(20)], expected=n * 20)
            large.execute("SAVEPOINT s")
            append(large, f"lost-{n}", [event("x" * 100) for _ in range(20)])
            large.execute("ROLLBACK TO s")
        append(producer, "order-1", event())
        step_until(leader, lambda: recorder.keys() == ["order-1"] and leader._engine._assembly._streamed)
        large.commit()
        append(producer, "order-1", event())
        published(leader, recorder, 802)
    assert recorder.versions("large-1") == list(range(1, 801))
    assert recorder.versions("order-1") == [1, 2]
    assert not [key for key in recorder.keys() if key.startswith("lost")]


def test_a_streamed_transaction_that_is_rolled_back_leaves_nothing_behind(dsn, producer, recorder, streams_early):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        with psycopg.connect(dsn) as large:
            append(large, "large-1", [event("x" * 100) for _ in range(1_000)])
            step_until(leader, lambda: leader._engine._assembly._streamed)
            large.rollback()
        append(producer, "order-1", event())
        published(leader, recorder, 1)
        step_until(leader, lambda: not leader._engine._assembly._streamed)
    assert recorder.keys() == ["order-1"]


def test_a_large_transaction_goes_on_in_its_midst_under_the_next_leader(dsn, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 100)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(500)])
        append(producer, "order-2", event())
        published(leader, recorder, 60)
        assert written(producer)[5] is not None
    assert len(recorder.messages) < 500
    append(producer, "order-1", event())
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 502)
    assert recorder.versions("order-1") == list(range(1, 502)), "in order, and nothing twice"
    assert recorder.versions("order-2") == [1]


def test_a_large_transaction_published_in_part_goes_on_if_the_next_release_holds_more(
    dsn, producer, recorder, monkeypatch
):
    monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 100)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(500)])
        published(leader, recorder, 60)
    monkeypatch.undo()
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 500)
    assert recorder.versions("order-1") == list(range(1, 501))


def test_what_is_held_in_memory_is_bounded_by_rows_and_by_bytes(dsn, producer, recorder, monkeypatch):
    with leading(dsn, recorder, CDC) as leader:
        assembly, rows, events_bytes = streaming(leader)._engine._assembly, [], []
        insert = assembly._insert

        def watched(*arguments):
            insert(*arguments)
            rows.append(len(assembly._rows))
            events_bytes.append(sum(len(e[5]) for e in assembly._events.values()))

        assembly._insert = watched
        monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 100)
        append(producer, "order-1", [event() for _ in range(1_000)])
        published(leader, recorder, 1_000)
        monkeypatch.undo()
        monkeypatch.setattr("outbox.relay.cdc_rows.HELD_BYTES", 100_000)
        append(producer, "order-2", [event("x" * 1_000) for _ in range(300)])
        published(leader, recorder, 1_300)
    assert max(rows) == 100
    assert 10_000 < max(events_bytes) <= 100_000
    assert recorder.versions("order-1") == list(range(1, 1_001))
    assert recorder.versions("order-2") == list(range(1, 301))


def test_a_row_whose_event_is_of_an_earlier_transaction_is_published(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", event())
        producer.execute("INSERT INTO outbox.outbox (position) SELECT position FROM outbox.event")
        published(leader, recorder, 2)
    assert recorder.versions("order-1") == [1, 1]


def test_a_read_takes_so_many_messages_and_bytes_at_most_and_goes_on_in_their_midst(
    dsn, producer, recorder, monkeypatch
):
    with leading(dsn, recorder, replace(CDC, page_min=1_000, page_max=1_000)) as leader:
        streaming(leader)
        monkeypatch.setattr("outbox.relay.cdc.MESSAGES_A_READ", 50)
        append(producer, "order-1", [event() for _ in range(200)])
        engine = leader._engine  # the transaction has 400 messages and more
        until(lambda: engine.read(leader._cursor, 1_000).rows == [] and engine._more)
        published(leader, recorder, 200)
        monkeypatch.undo()
        monkeypatch.setattr("outbox.relay.cdc.PAGE_BYTES", 5_000)
        for n in range(50):
            append(producer, "order-2", event("x" * 1_000), expected=n)
        sizes = []

        def read():
            before = len(recorder.messages)
            leader.step()
            sizes.append(len(recorder.messages) - before)
            return len(recorder.messages) == 250

        until(read)
    assert max(sizes) <= 5
    assert recorder.versions("order-1") == list(range(1, 201))
    assert recorder.versions("order-2") == list(range(1, 51))


@contextmanager
def commits_wait(producer, dsn):
    """Commits wait for a standby that there is not: they are in the log, and no snapshot sees them, until released.

    Yields what releases them. The leader's own connections do not wait."""
    name = producer.info.dbname

    def release():
        producer.execute("ALTER SYSTEM RESET synchronous_standby_names")
        producer.execute("SELECT pg_reload_conf()")

    producer.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = local')
    producer.execute("SET synchronous_commit = local")
    producer.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    producer.execute("SELECT pg_reload_conf()")
    try:
        until(lambda: producer.execute("SHOW synchronous_standby_names").fetchone()[0] == "nobody")
        yield release
    finally:
        release()


@contextmanager
def waiting_commit(dsn, stream, release):
    """A session whose append waits in its commit."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("SET synchronous_commit = on")
        thread = threading.Thread(target=append, args=(session, stream, event()))
        thread.start()
        try:
            with psycopg.connect(dsn, autocommit=True) as looking:
                query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
                until(lambda: looking.execute(query, [session.info.backend_pid]).fetchone())
            yield
        finally:
            release()
            thread.join(20)


def test_nothing_is_published_before_other_sessions_see_it(dsn, producer, recorder):
    with commits_wait(producer, dsn) as release, leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        with waiting_commit(dsn, "order-1", release):
            step_until(leader, lambda: leader._engine._held is not None)
            for _ in range(20):
                leader.step()
            assert recorder.messages == []
            release()
        published(leader, recorder, 1)


def test_a_commit_a_new_slot_does_not_give_is_waited_for_until_it_is_visible(dsn, producer, recorder):
    """It lies before the slot's beginning, and no statement sees it yet: the window must not be read without it."""
    waits_for = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND transactionid::text = %s"

    def waited_for(leader, connection):
        xid = connection.execute("SELECT (pg_current_xact_id()::text::bigint % 4294967296)::text").fetchone()
        step_until(leader, lambda: producer.execute(waits_for, xid).fetchone())

    with commits_wait(producer, dsn) as release, leading(dsn, recorder, CDC) as leader:
        with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second:
            first.execute("SELECT pg_current_xact_id()")
            leader.step()
            waited_for(leader, first)
            second.execute("SELECT pg_current_xact_id()")
            first.commit()
            waited_for(leader, second)
            with waiting_commit(dsn, "order-1", release):
                second.commit()
                step_until(leader, lambda: leader._engine._seen is not None)
                for _ in range(20):
                    leader.step()
                assert not leader._engine._streaming
                release()
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 2)
    assert recorder.versions("order-1") == [1, 2]


# ---------------------------------------------------------- the lost slot


def test_a_slot_that_is_gone_is_bridged_and_made_anew(dsn, producer, recorder):
    for round_ in range(3):
        with leading(dsn, recorder, CDC) as leader:
            streaming(leader)
            append(producer, "order-1", [event() for _ in range(5)])
            published(leader, recorder, round_ * 10 + 5)
        assert drop_slots(producer) == 1
        append(producer, "order-1", [event() for _ in range(5)])
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 30)
    assert recorder.versions("order-1") == list(range(1, 31)), "in order, and nothing twice"


def test_a_slot_that_has_lost_its_log_is_bridged_and_made_anew(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 1)
        lost = slots(producer)
    append(producer, "order-1", event())
    producer.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    producer.execute("SELECT pg_reload_conf()")
    try:
        status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"

        def is_lost():
            producer.execute("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(true, '', 'x')) m")
            producer.execute("CHECKPOINT")
            return producer.execute(status, lost).fetchone()[0] == "lost"

        until(is_lost, 60)
    finally:
        producer.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        producer.execute("SELECT pg_reload_conf()")
    with leading(dsn, recorder, CDC) as leader:
        append(producer, "order-1", event())
        published(leader, recorder, 3)
        streaming(leader)
        assert not set(slots(producer)) & set(lost)
    assert recorder.versions("order-1") == [1, 2, 3]


def test_while_a_slot_cannot_be_made_yet_the_relay_polls_and_the_join_leaves_no_gap(dsn, producer, recorder):
    with psycopg.connect(dsn) as slow, leading(dsn, recorder, CDC) as leader:
        append(slow, "slow-1", event())
        append(producer, "order-1", [event() for _ in range(100)])
        published(leader, recorder, 100)
        assert not leader._engine._streaming, "a slot waits for every open transaction"
        slow.commit()
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 102)
    assert recorder.versions("order-1") == list(range(1, 102))
    assert recorder.versions("slow-1") == [1]


def test_a_crash_while_bridging_loses_nothing_and_leaves_one_slot(dsn, producer, recorder):
    """Whether the new slot is not written down yet, or its window is published in part."""
    total = 0
    for steps in range(12):
        drop_slots(producer)
        append(producer, "order-1", [event() for _ in range(25)])
        total += 25
        with leading(dsn, recorder, CDC) as leader:
            for _ in range(steps):
                leader.step()
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        published(leader, recorder, total)
        assert len(slots(producer)) == 1
    assert recorder.versions("order-1") == list(range(1, total + 1))


def test_a_slot_made_but_not_written_down_is_dropped_by_the_next_leader(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        leader._engine.read(leader._cursor, 10)
        until(lambda: leader._engine._replication.made())
        (orphan,) = slots(producer)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        assert orphan not in slots(producer)
        assert len(slots(producer)) == 1


def test_an_old_leader_leaves_the_slot_of_a_newer_one_alone(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
    with connected(dsn) as connection:
        (newer,) = slots(producer)
        slotting.drop_older(connection, "relay", epoch=1)
        assert slots(producer) == [newer]
        slotting.drop_older(connection, "relay", epoch=2, keep=newer)
        assert slots(producer) == [newer]
        slotting.drop_older(connection, "relay", epoch=2)
        assert slots(producer) == []


def test_relays_of_several_names_have_slots_of_their_own(dsn, producer):
    one, other = Recorder(), Recorder()
    with leading(dsn, one, CDC) as first, leading(dsn, other, replace(CDC, name="Relay 2!")) as second:
        streaming(first), streaming(second)
        append(producer, "order-1", event())
        published(first, one, 1), published(second, other, 1)
        assert len(slots(producer)) == 2
    with leading(dsn, one, POLL):
        assert len(slots(producer)) == 1, "the poll engine drops the slots of its own name only"


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


def test_a_transaction_streamed_in_part_is_published_by_the_poll_engine_too(dsn, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 100)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", [event() for _ in range(300)])
        published(leader, recorder, 60)
    with leading(dsn, recorder, POLL) as leader:
        drain(leader)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 301))


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


# ------------------------------------------------- refusals and warnings


def test_a_server_that_does_not_write_its_log_logically_is_told_in_one_line_and_can_be_polled():
    with Local(settings={"postgres": {"wal_level": "replica", "fsync": "off"}}) as local:
        (server,) = local.start("postgres")
        with connected(server.address) as connection:
            migrate(connection)
            append(connection, "order-1", event())
        with pytest.raises(SettingsError, match="wal_level = replica: set wal_level = logical"):
            with leading(server.address, Recorder(), CDC):
                pass
        recorder = Recorder()
        with leading(server.address, recorder, POLL) as leader:
            drain(leader)
        assert recorder.versions("order-1") == [1]


def test_while_the_server_has_no_slot_to_give_the_relay_polls_and_asks_again(dsn, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.cdc.MAKE_AGAIN_S", 0.05)
    taken = []
    try:
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            for n in range(1_000):
                name = f"{producer.info.dbname}_{n}"
                producer.execute("SELECT pg_create_physical_replication_slot(%s)", [name])
                taken.append(name)
        with leading(dsn, recorder, CDC) as leader:
            for n in range(10):
                append(producer, "order-1", event())
                published(leader, recorder, n + 1)
            assert not leader._engine._streaming
            producer.execute("SELECT pg_drop_replication_slot(%s)", [taken.pop()])
            streaming(leader)
            append(producer, "order-1", event())
            published(leader, recorder, 11)
    finally:
        for name in taken:
            producer.execute("SELECT pg_drop_replication_slot(%s)", [name])
    assert recorder.versions("order-1") == list(range(1, 12))


def test_a_role_that_may_not_replicate_is_told_what_to_do(dsn, producer):
    role = f"plain_{producer.info.dbname}"
    producer.execute(f"CREATE ROLE {role} LOGIN")
    try:
        producer.execute(f"GRANT ALL ON SCHEMA outbox TO {role}")
        producer.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA outbox TO {role}")
        from urllib.parse import urlsplit

        parts = urlsplit(dsn)
        theirs = parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl()
        with pytest.raises(SettingsError, match="may not replicate: ALTER ROLE ... REPLICATION"):
            with leading(theirs, Recorder(), CDC):
                pass
    finally:
        producer.execute(f"DROP OWNED BY {role}")
        producer.execute(f"DROP ROLE {role}")


def test_a_publication_that_somebody_dropped_is_named(dsn, producer):
    producer.execute("DROP PUBLICATION outbox_relay")
    with pytest.raises(DatabaseError, match="CREATE PUBLICATION outbox_relay FOR TABLE outbox.event, outbox.outbox"):
        with leading(dsn, Recorder(), CDC):
            pass


def test_a_slot_that_keeps_too_much_of_the_log_is_warned_of_once_and_measured(
    dsn, producer, recorder, capsys, monkeypatch
):
    monkeypatch.setattr("outbox.relay.cdc.WATCH_EVERY_S", 0)
    with leading(dsn, recorder, replace(CDC, slot_wal_warn_bytes=1 << 20, lease_s=3600)) as leader:
        streaming(leader)
        leader.step()
        assert "keeps much" not in capsys.readouterr().out
        with psycopg.connect(dsn) as slow:  # the slot cannot let go of what an open transaction began with
            slow.execute("SELECT pg_logical_emit_message(true, '', 'x')")
            producer.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 3 << 20))")
            for _ in range(5):
                leader.step()
    assert capsys.readouterr().out.count("keeps much of the write-ahead log") == 1
    assert slotting.SLOT_WAL_BYTES._value.get() > 1 << 20


def test_a_relay_whose_slot_is_dropped_under_it_makes_another_and_goes_on(dsn, producer, recorder):
    stop, failed = threading.Event(), []

    def run():
        try:
            Relay(dsn, lambda: recorder, replace(CDC, lease_s=0.6, retry_s=0.01)).run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for round_ in range(3):
            until(lambda: producer.execute("SELECT 1 FROM pg_replication_slots WHERE active").fetchone())
            append(producer, "order-1", event())
            until(lambda round_=round_: len(recorder.messages) > round_)
            until(lambda: drop_slots(producer) == 1)
    finally:
        stop.set()
        thread.join(20)
    assert failed == []
    assert recorder.versions("order-1") == [1, 2, 3]


def test_a_slot_is_not_waited_for_when_the_relay_stops(dsn, producer):
    """A transaction that stays open holds up the making of a slot, not the end of the process."""
    with psycopg.connect(dsn) as slow, connected(dsn) as connection:
        slow.execute("SELECT pg_current_xact_id()")
        replication = Replication(dsn, connection)
        replication.make_slot("outbox_test_" + producer.info.dbname[-12:])
        until(lambda: slots(producer))
        assert replication.made() is None
        begun = time.monotonic()
        replication.close()
        assert time.monotonic() - begun < 5
        until(lambda: slots(producer) == [])
