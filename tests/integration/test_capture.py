"""Capture of ordinary tables: what others commit is in the log, in order, once, from the first row on."""

from __future__ import annotations

import threading
import time
import tracemalloc
from dataclasses import replace

import psycopg
import pytest

from outbox.capture import names, registered, source
from outbox.capture.snapshot import Snapshot
from outbox.capture.writer import Writer
from outbox.codec import default_registry
from outbox.database import connected
from outbox.errors import SettingsError
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.relay import slot as slots
from outbox.relay.replication import Replication
from tests.capturing import QUICK, THINGS, Captured, captured, things, told  # noqa: F401
from tests.relaying import lose_lease

OPEN_WRITERS = """
SELECT count(*) FROM pg_locks
WHERE relation IN ('outbox.event'::regclass, 'outbox.captured'::regclass) AND mode = 'RowExclusiveLock' AND granted
"""

# ------------------------------------------------------------ what is told


def test_rows_that_stand_already_come_first_then_each_change_in_its_order(things):
    things.drain()
    assert told(things.events()) == [(f"things-{n}", 1, "row.inserted") for n in (1, 2, 3)]
    last = things.events()[-1].position
    with things.db.transaction():
        things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
        things.db.execute("UPDATE things SET price = 4.40 WHERE id = 4")
        things.db.execute("DELETE FROM things WHERE id = 1")
    things.db.execute("UPDATE things SET name = 'drei' WHERE id = 3")
    things.drain()
    after = things.events(last)
    assert told(after) == [
        ("things-4", 1, "row.inserted"),
        ("things-4", 2, "row.updated"),
        ("things-1", 2, "row.deleted"),
        ("things-3", 2, "row.updated"),
    ]
    assert after[1].data["columns"] == {"id": 4, "name": "four", "price": "4.40"}
    assert after[2].data["key"] == {"id": 1}
    assert [e.data["ordinal"] for e in after] == [1, 2, 3, 1]
    assert len({e.data["lsn"] for e in after[:3]}) == 1 < len({e.data["lsn"] for e in after})


def test_what_was_rolled_back_is_not_told(things):
    things.drain()
    with pytest.raises(ZeroDivisionError), things.db.transaction():
        things.db.execute("INSERT INTO things VALUES (9, 'nine', 9)")
        raise ZeroDivisionError
    things.drain()
    assert len(things.events()) == 3


def test_another_key_is_a_deletion_and_an_insert(things):
    things.drain()
    things.db.execute("UPDATE things SET id = 7 WHERE id = 2")
    things.drain()
    gone, come = things.events()[3:]
    assert told([gone, come]) == [("things-2", 2, "row.deleted"), ("things-7", 1, "row.inserted")]
    assert gone.data["key"] == {"id": 2}
    assert come.data["columns"] == {"id": 7, "name": "two", "price": "2.20"}


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_another_key_of_a_row_with_a_large_value_keeps_the_value(things, identity):
    things.db.execute(f"ALTER TABLE things REPLICA IDENTITY {identity}")
    things.db.execute("ALTER TABLE things ALTER COLUMN name SET STORAGE EXTERNAL")
    large = "x" * 100_000
    things.db.execute("INSERT INTO things VALUES (8, %s, 1)", [large])
    things.drain()
    things.db.execute("UPDATE things SET id = 9 WHERE id = 8")
    things.db.execute("UPDATE things SET price = 5 WHERE id = 9")
    things.drain()
    assert things.rows("things")["things-9"] == {"id": 9, "name": large, "price": "5.00"}


def test_truncate_is_the_deletion_of_every_row(things):
    things.drain()
    with things.db.transaction():
        things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
        things.db.execute("TRUNCATE things")
        things.db.execute("INSERT INTO things VALUES (2, 'again', 0)")
        things.db.execute("TRUNCATE things")
        things.db.execute("INSERT INTO things VALUES (2, 'at last', 0)")
    things.drain()
    assert [e.type for e in things.events() if e.stream == "things-4"] == ["row.inserted", "row.deleted"]
    assert things.rows("things") == {"things-2": {"id": 2, "name": "at last", "price": "0.00"}}


def test_a_large_value_an_update_left_alone_is_taken_from_the_log(things):
    things.db.execute("ALTER TABLE things ALTER COLUMN name SET STORAGE EXTERNAL")
    large = "x" * 100_000
    things.drain()
    things.db.execute("INSERT INTO things VALUES (8, %s, 1)", [large])
    things.db.execute("UPDATE things SET price = 2 WHERE id = 8")  # in the same chunk
    things.drain()
    things.db.execute("UPDATE things SET price = 3 WHERE id = 8")  # in a later one
    things.drain()
    assert [(e.data["columns"]["name"], e.data["columns"]["price"]) for e in things.events()[3:]] == [
        (large, "1.00"),
        (large, "2.00"),
        (large, "3.00"),
    ]


def test_a_large_value_the_log_does_not_have_has_all_rows_looked_at_again(things):
    things.db.execute("ALTER TABLE things ALTER COLUMN name SET STORAGE EXTERNAL")
    things.db.execute("INSERT INTO things VALUES (8, %s, 1)", ["x" * 100_000])
    things.drain()
    with connected(things.dsn) as connection, connection.transaction():
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        connection.execute("DELETE FROM outbox.event WHERE stream = 'things-8'")
    things.db.execute("UPDATE things SET price = 3 WHERE id = 8")
    things.drain()
    assert things.rows("things")["things-8"] == {"id": 8, "name": "x" * 100_000, "price": "3.00"}


def test_a_transaction_larger_than_a_chunk_is_one_transaction_of_the_log(things):
    things.drain()
    things.db.execute("INSERT INTO things SELECT g, 'n', 1 FROM generate_series(10, 12009) g")
    things.drain()
    assert things.one("SELECT count(*), count(DISTINCT xid) FROM outbox.event WHERE stream ~ '^things-.{2,}'") == (
        12_000,
        1,
    )


def test_large_values_are_in_memory_a_few_at_a_time(things, monkeypatch):
    """400 rows of 20,000 characters: read from a snapshot, left alone by an update, looked at again, truncated."""
    monkeypatch.setattr("outbox.capture.snapshot.CHUNK_BYTES", 200_000)
    monkeypatch.setattr("outbox.capture.writer.CHUNK_BYTES", 200_000)
    monkeypatch.setattr("outbox.capture.writer.CHUNK_HOLES", 10)
    monkeypatch.setattr("outbox.capture.writer.PAGE_STREAMS", 10)
    things.db.execute("ALTER TABLE things ALTER COLUMN name SET STORAGE EXTERNAL")
    things.db.execute("INSERT INTO things SELECT g, repeat('x', 20000), 1 FROM generate_series(10, 409) g")
    for statement in ("", "UPDATE things SET price = 2 WHERE id >= 10", "again", "TRUNCATE things"):
        if statement == "again":
            things.capture().again("things")
        elif statement:
            things.db.execute(statement)
        tracemalloc.start()
        things.drain()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000, statement or "a first look"
    assert things.rows("things") == {}


def test_a_transaction_that_goes_on_elsewhere_for_long_is_waited_for(things, monkeypatch):
    """Between the first chunk of its captured rows and its end there is more than the log's patience with a leader."""
    things.drain()
    monkeypatch.setattr("outbox.database.HALTED_MS", 250)
    monkeypatch.setattr("outbox.capture.stream.MARK_EVERY_S", 0.05)
    receive, silent_until = Replication.receive, 0.0

    def receiving(self):
        nonlocal silent_until
        if not silent_until and things.one(OPEN_WRITERS) != (0,):
            silent_until = time.monotonic() + 1
        return None if time.monotonic() < silent_until else receive(self)

    monkeypatch.setattr(Replication, "receive", receiving)
    monkeypatch.setattr("outbox.capture.writer.CHUNK_EVENTS", 2)
    things.db.execute("INSERT INTO things SELECT g, 'n', 1 FROM generate_series(10, 14) g")
    things.drain()
    assert silent_until
    assert len(things.events()) == 3 + 5


def test_no_transaction_is_open_while_the_source_looks_for_the_first_rows(things, monkeypatch):
    chunks, was_open = Snapshot._chunks, []

    def looking(self, *given):
        was_open.append(things.one(OPEN_WRITERS) != (0,))
        return chunks(self, *given)

    monkeypatch.setattr(Snapshot, "_chunks", looking)
    things.drain()
    assert was_open == [False]
    assert things.all_events()[0].type == "table.described"


def test_a_table_elsewhere_is_captured_into_this_log(new_database, empty_database):
    with captured(new_database(), empty_database) as one:
        one.db.execute("CREATE SCHEMA sales")
        one.db.execute("CREATE TABLE sales.orders (a int, b text, n int, PRIMARY KEY (b, a))")
        one.db.execute("INSERT INTO sales.orders VALUES (1, 'x,y', 0)")
        one.add("sales.orders")
        one.drain()
        one.db.execute("UPDATE sales.orders SET n = 1")
        one.drain()
        assert told(one.events()) == [
            ("sales.orders-x%2Cy,1", 1, "row.inserted"),
            ("sales.orders-x%2Cy,1", 2, "row.updated"),
        ]
        with pytest.raises(SettingsError, match="another database"):
            Captured(one.dsn).capture().run(threading.Event(), drain=True)


# ------------------------------------------------------------------- once


def test_what_the_source_gives_again_is_not_written_again(things):
    things.drain()
    before = things.one("SELECT lsn::text, slot FROM outbox.capture")
    things.db.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [before[1], f"{before[1]}_copy"])
    things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
    things.db.execute("UPDATE things SET id = 5 WHERE id = 4")
    things.db.execute("TRUNCATE things")
    things.drain()
    known = told(things.events())
    with connected(things.dsn) as connection:
        # As if the position had been lost with the slot still where it was.
        connection.execute("SELECT pg_drop_replication_slot(%s)", [before[1]])
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [f"{before[1]}_copy", before[1]])
        connection.execute("SELECT pg_drop_replication_slot(%s)", [f"{before[1]}_copy"])
        connection.execute("UPDATE outbox.capture SET lsn = %s::pg_lsn", [before[0]])
    things.db.execute("INSERT INTO things VALUES (6, 'six', 6)")
    things.drain()
    assert told(things.events()) == [*known, ("things-6", 1, "row.inserted")]


def test_a_leader_that_was_deposed_writes_nothing(things):
    things.drain()
    things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
    deposed, stop = [], threading.Event()

    def depose(*_):
        if not deposed:
            with connected(things.dsn) as connection:
                deposed.append(connection.execute("UPDATE outbox.capture SET epoch = epoch + 2"))
            stop.set()

    capture = things.capture()
    flush = Writer.flush
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "flush", lambda self: (flush(self), depose())[0])
        capture.run(stop, drain=True)
    assert deposed
    assert len(things.events()) == 3
    things.drain()  # the next terms find an epoch above their own, which is no reason to end
    assert len(things.events()) == 4


def test_a_second_process_stands_by_and_takes_over(things):
    with things.running():
        things.until(lambda: len(things.events()) == 3)
        with things.running():
            epoch = things.one("SELECT epoch FROM outbox.capture")
            things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
            things.until(lambda: len(things.events()) == 4)
            assert things.one("SELECT epoch FROM outbox.capture") == epoch
    with things.running():
        things.db.execute("INSERT INTO things VALUES (5, 'five', 5)")
        things.until(lambda: len(things.events()) == 5)


@pytest.mark.parametrize("written", [False, True], ids=["before its position is written", "behind it"])
def test_a_leader_halted_in_the_midst_of_its_transaction_holds_nobody_up(things, monkeypatch, written):
    things.drain()
    halted, goes_on, move = threading.Event(), threading.Event(), registered.move

    def halting(*given):
        if written:
            move(*given)
        if not halted.is_set():
            halted.set()
            goes_on.wait(60)
        if not written:
            move(*given)

    monkeypatch.setattr(registered, "move", halting)
    monkeypatch.setattr("outbox.database.HALTED_MS", 500)
    with things.running():
        things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
        assert halted.wait(30)
        with connected(things.dsn) as connection:
            lose_lease(connection)
        with things.running():
            things.db.execute("INSERT INTO things VALUES (5, 'five', 5)")
            try:
                things.until(lambda: len(things.events()) == 5)
            finally:
                goes_on.set()
    things.drain()
    assert [stream for stream, _, _ in told(things.events())] == [f"things-{n}" for n in range(1, 6)]


def test_a_leader_that_waits_for_the_sources_open_transactions_is_not_taken_for_one_that_hangs(things, monkeypatch):
    monkeypatch.setattr("outbox.relay.lease.STALL_S", 0.5)
    renewals = set()

    def kept() -> bool:
        renewals.add(things.one("SELECT epoch, expires_at FROM outbox.lease"))
        return len(renewals) > 5

    with psycopg.connect(things.dsn) as other, things.running():
        other.execute("INSERT INTO things VALUES (4, 'four', 4)")
        things.until(lambda: things.one("SELECT count(*) FROM outbox.lease") == (1,))
        things.until(kept, within_s=10)
        other.commit()
        things.until(lambda: len(things.events()) == 4)
    assert things.one("SELECT epoch FROM outbox.capture") == (1,)


def test_a_long_look_at_the_rows_that_the_log_has_is_no_hanging(things, monkeypatch):
    things.drain()
    monkeypatch.setattr("outbox.capture.writer.PAGE_STREAMS", 1)
    signs: list[None] = []
    with connected(things.dsn) as connection:
        standing = registered.Standing("capture", 1, "", None, 0)
        writer = Writer(connection, default_registry(), standing, lambda: signs.append(None))
        assert len(list(writer.live("things"))) == len(signs) == 3


# --------------------------------------------------------------- snapshots


def test_a_snapshot_joins_the_stream_while_writers_go_on(things):
    stop = threading.Event()

    def write(seed: int) -> None:
        import random

        choose = random.Random(seed)
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            while not stop.is_set():
                key = choose.randrange(200)
                connection.execute(
                    choose.choice(
                        (
                            "INSERT INTO things VALUES (%s, 'new', 1) ON CONFLICT DO NOTHING",
                            "UPDATE things SET price = price + 1 WHERE id = %s",
                            "DELETE FROM things WHERE id = %s",
                            "UPDATE things SET id = id + 1000 WHERE id = %s AND NOT EXISTS (SELECT FROM things t"
                            " WHERE t.id = things.id + 1000)",
                        )
                    ),
                    [key],
                )

    writers = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    things.db.execute("INSERT INTO things SELECT g, 'old', 0 FROM generate_series(10000, 20000) g")
    for writer in writers:
        writer.start()
    try:
        things.drain()
        things.drain()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    things.drain()
    rows = {s: {**r, "price": str(r["price"])} if "price" in r else r for s, r in things.table("things").items()}
    assert things.rows("things") == rows  # which also says that every insert found no row, every other one found it


class Stopped(Exception):
    """A process that ends in the midst of a snapshot."""


def test_an_interrupted_snapshot_begins_again_and_says_nothing_twice(things):
    things.db.execute("INSERT INTO things SELECT g, 'n', 1 FROM generate_series(100, 12099) g")

    def end(done, total, what):
        if done >= 5_000:
            raise Stopped

    with pytest.raises(Stopped):
        things.drain(tell=end)
    assert 0 < len(things.events()) < 12_003
    things.db.execute("DELETE FROM things WHERE id = 1")
    things.db.execute("UPDATE things SET name = 'other' WHERE id = 2")
    things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
    things.drain()
    events = things.events()
    assert [e.type for e in events if e.stream == "things-2"] == ["row.inserted", "row.updated"]
    assert [e.type for e in events if e.stream == "things-1"] == ["row.inserted", "row.deleted"]
    assert sum(e.type == "row.inserted" for e in events) == 12_004
    assert len(events) == 12_006


@pytest.mark.parametrize("loss", ["dropped", "ahead"])
def test_a_slot_that_is_lost_costs_a_look_at_all_rows_and_says_only_what_differs(things, loss):
    things.drain()
    (slot,) = things.one("SELECT slot FROM outbox.capture")
    things.db.execute("UPDATE things SET name = 'zwei' WHERE id = 2")
    things.db.execute("DELETE FROM things WHERE id = 1")
    if loss == "dropped":
        things.db.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    else:  # the log was restored to an earlier moment, the source was not
        things.db.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
    things.drain()
    assert sorted(told(things.events()[3:])) == [("things-1", 2, "row.deleted"), ("things-2", 2, "row.updated")]


def test_a_source_that_went_back_with_its_slot_is_looked_at_again(things):
    """As one whose disk was put back to a copy: its log ends before what was captured."""
    things.drain()
    with connected(things.dsn) as connection:
        connection.execute("UPDATE outbox.capture SET lsn = lsn + 1000000000")
    things.db.execute("UPDATE things SET name = 'zwei' WHERE id = 2")
    things.drain()
    assert told(things.events()[3:]) == [("things-2", 2, "row.updated")]
    things.db.execute("DELETE FROM things WHERE id = 1")
    things.drain()
    assert set(things.rows("things")) == {"things-2", "things-3"}


def test_positions_that_come_again_from_a_source_that_went_back_are_other_changes(things, monkeypatch):
    change_id = names.change_id
    monkeypatch.setattr(names, "change_id", lambda origin, lsn, ordinal: change_id(origin, 0, ordinal))
    things.drain()
    things.db.execute("UPDATE things SET name = 'eins' WHERE id = 1")
    things.drain()
    things.db.execute("SELECT pg_drop_replication_slot(slot) FROM outbox.capture")
    things.drain()
    things.db.execute("UPDATE things SET name = 'zwei' WHERE id = 2")
    things.drain()
    assert things.rows("things")["things-2"]["name"] == "zwei"


def test_asking_for_another_look_puts_the_log_right(things):
    things.drain()
    with connected(things.dsn) as connection:
        data = {"table": "public.things", "shape": 1, "columns": {"id": 99}, "lsn": 0, "ordinal": 0, "at_us": 0}
        append(connection, "things-99", NewEvent("row.inserted", data))
    things.capture().again("things")
    things.drain()
    assert "things-99" not in things.rows("things")
    with pytest.raises(SettingsError, match="has no 'other'; it captures things"):
        things.capture().again("other")


def test_events_of_other_kinds_in_a_tables_streams_are_put_right(things):
    things.drain()
    with connected(things.dsn) as connection:
        for stream in ("things-1", "things-99"):
            append(connection, stream, NewEvent("entity.deleted", {}))
    things.capture().again("things")
    things.drain()
    after = [e for e in things.events() if e.stream in {"things-1", "things-99"}][1:]
    assert told(after) == [("things-1", 3, "row.updated"), ("things-99", 2, "row.deleted")]
    assert after[0].data["columns"] == {"id": 1, "name": "one", "price": "1.10"}


def test_tables_are_taken_in_and_let_go_while_a_process_runs(things):
    things.db.execute("CREATE TABLE others (id text PRIMARY KEY)")
    things.db.execute("INSERT INTO others VALUES ('a')")
    with things.running():
        things.until(lambda: len(things.events()) == 3)
        things.add("others", "things")
        things.until(lambda: "others-a" in things.rows("others"))
        things.db.execute("INSERT INTO others VALUES ('b')")
        things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
        things.until(lambda: len(things.events()) == 6)
        things.capture().drop("others")
        things.db.execute("INSERT INTO others VALUES ('c')")
        things.db.execute("INSERT INTO things VALUES (5, 'five', 5)")
        things.until(lambda: len(things.events()) == 7)
        assert "others-c" not in things.rows("others")
    things.capture().drop("things")
    assert things.db.execute("SELECT FROM pg_replication_slots WHERE database = current_database()").fetchall() == []
    assert things.db.execute("SELECT FROM pg_publication WHERE pubname ~ '^outbox_capture'").fetchall() == []


def test_a_process_whose_last_table_is_let_go_ends_by_itself(things):
    """Also if it is amid its stream, and a stand-by."""
    patient = replace(QUICK, look_s=60.0)
    with things.running(settings=patient) as leading, things.running(settings=patient):
        things.until(lambda: leading.counts.events or things.events())
        things.capture().drop("things")
        things.until(lambda: sum(t.name == "capturing" for t in threading.enumerate()) == 0)


def test_a_slot_made_for_a_capture_that_was_let_go_meanwhile_does_not_stay(things, monkeypatch):
    at_snapshot = source.at_snapshot

    def let_go(*given):
        things.one("DELETE FROM outbox.capture RETURNING name")
        return at_snapshot(*given)

    monkeypatch.setattr(source, "at_snapshot", let_go)
    things.drain()
    assert things.one("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == (0,)


def test_a_slot_that_keeps_much_is_warned_of_once(things, monkeypatch):
    monkeypatch.setattr("outbox.capture.leader.WATCH_EVERY_S", 0.0)
    looked, warned, look = [], [], slots.Watch.look
    monkeypatch.setattr(slots.Watch, "look", lambda *given: (look(*given), looked.append(None))[0])
    monkeypatch.setattr(slots.log, "warning", lambda text, **_: warned.append(text))
    with things.running(settings=replace(QUICK, slot_wal_warn_bytes=-1)):
        things.until(lambda: len(looked) > 3)
    assert len(warned) == 1


def test_a_quiet_table_lets_the_server_forget_its_log(things, monkeypatch):
    monkeypatch.setattr("outbox.capture.stream.MARK_EVERY_S", 0.05)
    things.db.execute("CREATE TABLE busy (n int)")
    with things.running():
        things.until(lambda: len(things.events()) == 3)
        (lsn,) = things.db.execute("SELECT pg_current_wal_lsn()").fetchone()

        def passed():
            things.db.execute("INSERT INTO busy VALUES (1)")
            state = "SELECT confirmed_flush_lsn > %s FROM pg_replication_slots WHERE slot_name ~ '^outbox_capture'"
            return things.db.execute(state + " AND database = current_database()", [lsn]).fetchone() == (True,)

        things.until(passed)
