"""The cdc engine: little is held in memory, and nothing is published before other sessions see it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import psycopg
import pytest

from outbox.log.append import append
from tests.integration.appending import event
from tests.integration.streaming import CDC, POLL, confirmed, dsn, producer, published, recorder, streaming, written  # noqa: F401
from tests.relaying import (
    leading,
    step_until,
    until,
)

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
        step_until(leader, lambda: recorder.keys() == ["order-1"] and leader._engine.engine._assembly._streamed)
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
            step_until(leader, lambda: leader._engine.engine._assembly._streamed)
            large.rollback()
        append(producer, "order-1", event())
        published(leader, recorder, 1)
        step_until(leader, lambda: not leader._engine.engine._assembly._streamed)
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


@pytest.mark.parametrize("rows", [99, 100, 101])
def test_a_large_transaction_that_fills_its_last_page_takes_nothing_of_others_along(
    dsn, producer, recorder, monkeypatch, rows
):
    """What others wrote meanwhile comes in the order of their commits, once."""
    monkeypatch.setattr("outbox.relay.cdc_rows.HELD_ROWS", 50)
    pages_of_50 = replace(CDC, page_min=50, page_max=50)
    with leading(dsn, recorder, pages_of_50) as leader, psycopg.connect(dsn) as early:
        streaming(leader)
        early.execute("SELECT pg_current_xact_id()")
        append(producer, "order-1", [event() for _ in range(rows)])
        append(early, "order-2", event())
        early.commit()
        append(producer, "order-2", event())
        append(producer, "order-3", event())
        step_until(leader, lambda: "order-3" in recorder.keys())
        append(producer, "end-1", event())
        step_until(leader, lambda: "end-1" in recorder.keys())
    assert recorder.versions("order-1") == list(range(1, rows + 1))
    assert recorder.versions("order-2") == [1, 2]
    assert recorder.keys().count("order-3") == 1


def test_a_streamed_transaction_of_which_all_was_rolled_back_but_its_end_takes_nothing_of_others_along(
    dsn, producer, recorder, streams_early
):
    with psycopg.connect(dsn) as large, leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        large.execute("SAVEPOINT s")
        append(large, "lost-1", [event("x" * 100) for _ in range(1_000)])
        step_until(leader, lambda: any(leader._engine.engine._assembly._streamed.values()))
        large.execute("ROLLBACK TO s")
        large.commit()
        append(producer, "order-1", event())
        published(leader, recorder, 1)
        append(producer, "end-1", event())
        step_until(leader, lambda: "end-1" in recorder.keys())
    assert recorder.keys() == ["order-1", "end-1"]


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
        assembly, rows, events_bytes = streaming(leader)._engine.engine._assembly, [], []
        take = assembly.take

        def watched(message):
            committed = take(message)
            rows.append(len(assembly._rows))
            events_bytes.append(sum(len(e[5]) for e in assembly._events.values()))
            return committed

        assembly.take = watched
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
        engine = leader._engine.engine
        receive, given = engine._replication.receive, count()

        def at_hand():
            """What a read finds is the whole transaction, of 400 messages and more, however slowly it comes."""
            return until(receive) if next(given) < 300 else receive()

        monkeypatch.setattr(engine._replication, "receive", at_hand)
        append(producer, "order-1", [event() for _ in range(200)])
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
            step_until(leader, lambda: leader._engine.engine._held is not None)
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
                step_until(leader, lambda: leader._engine.engine._seen is not None)
                for _ in range(20):
                    leader.step()
                assert not leader._engine.engine._streaming
                release()
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 2)
    assert recorder.versions("order-1") == [1, 2]
