"""Capture of ordinary tables: what others commit is in the log, in order, once, from the first row on."""

from __future__ import annotations

import json
import threading

import psycopg
import pytest

from outbox.capture import registered
from outbox.capture.snapshot import Snapshot
from outbox.capture.source import at_snapshot
from outbox.capture.writer import Writer
from outbox.codec import default_registry
from outbox.database import connected
from outbox.errors import DatabaseError, InvalidEvent, SettingsError
from outbox.event import NewEvent
from outbox.log.append import append
from tests.capturing import Captured, captured

THINGS = "CREATE TABLE things (id int PRIMARY KEY, name text, price numeric(10, 2))"


@pytest.fixture
def things(database):
    """A table of three rows, captured."""
    with captured(database) as one:
        one.db.execute(THINGS)
        one.db.execute("INSERT INTO things VALUES (1, 'one', 1.10), (2, 'two', 2.20), (3, NULL, NULL)")
        one.add("things")
        yield one


def told(events):
    return [(e.stream, e.version, e.type) for e in events]


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
        connection.execute("UPDATE outbox.capture SET lsn = %s::pg_lsn, slot = slot || '_copy'", [before[0]])
    things.db.execute("INSERT INTO things VALUES (6, 'six', 6)")
    things.drain()
    assert told(things.events()) == [*known, ("things-6", 1, "row.inserted")]


def test_a_leader_that_was_deposed_writes_nothing(things):
    things.drain()
    things.db.execute("INSERT INTO things VALUES (4, 'four', 4)")
    deposed = []

    def depose(*_):
        if not deposed:
            with connected(things.dsn) as connection:
                deposed.append(connection.execute("UPDATE outbox.capture SET epoch = epoch + 1000"))

    capture = things.capture()
    flush = Writer.flush
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "flush", lambda self: (flush(self), depose())[0])
        with pytest.raises(SettingsError):  # the next term finds an epoch above its own
            capture.run(threading.Event(), drain=True)
    assert deposed
    assert len(things.events()) == 3


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


# ----------------------------------------------------------------- columns


def test_a_table_altered_is_described_anew_and_all_its_rows_follow(things):
    things.drain()
    things.db.execute("ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'")
    things.drain()
    assert things.rows("things")["things-1"] == {"id": 1, "name": "one", "price": "1.10", "colour": "red"}
    things.db.execute("ALTER TABLE things DROP COLUMN name")
    things.db.execute("ALTER TABLE things RENAME COLUMN price TO cost")
    things.db.execute("INSERT INTO things VALUES (4, 4, 'blue')")
    things.drain()
    assert things.rows("things")["things-1"] == {"id": 1, "cost": "1.10", "colour": "red"}
    things.db.execute("ALTER TABLE things ALTER COLUMN cost TYPE float USING cost * 2")
    things.drain()
    assert things.rows("things")["things-1"] == {"id": 1, "cost": 2.2, "colour": "red"}
    described = [e for e in things.all_events() if e.type == "table.described"]
    assert [e.stream for e in described] == ["things"] * len(described)
    assert [c["name"] for c in described[-1].data["columns"]] == ["id", "cost", "colour"]
    assert described[-1].data["columns"][1]["type"] == "double precision"
    shapes = [e.data["shape"] for e in things.events()]
    assert shapes[-1] == described[-1].version


def test_the_derived_schema_reads_what_the_one_before_wrote(things):
    from fastavro import parse_schema, schemaless_reader, schemaless_writer
    from io import BytesIO

    things.drain()
    things.db.execute('ALTER TABLE things ADD COLUMN "größer als" bool, DROP COLUMN name')
    things.drain()
    old, new = (parse_schema(json.loads(e.data["avro"])) for e in things.all_events() if e.type == "table.described")
    row = things.events()[0].data["columns"]
    coded = BytesIO()
    schemaless_writer(coded, old, row)
    coded.seek(0)
    assert schemaless_reader(coded, old, new) == {"id": 1, "price": "1.10", "_x" + "größer als".encode().hex(): None}


def test_a_column_without_values_is_no_news_of_any_row(things):
    things.drain()
    things.db.execute("ALTER TABLE things ADD COLUMN note text")
    things.drain()
    assert len(things.events()) == 3


def test_another_key_column_is_refused_in_one_line(things):
    things.drain()
    things.db.execute("ALTER TABLE things DROP CONSTRAINT things_pkey")
    with pytest.raises(SettingsError, match="it has no primary key"):
        things.drain()
    things.db.execute("ALTER TABLE things REPLICA IDENTITY FULL")
    things.db.execute("UPDATE things SET name = 'three' WHERE id = 3")
    things.db.execute("ALTER TABLE things ADD PRIMARY KEY (name)")
    with pytest.raises(SettingsError, match=r"the key of table public.things was \(id\)"):
        things.drain()


def test_a_row_no_event_can_hold_is_named(things):
    things.drain()
    things.db.execute("INSERT INTO things VALUES (4, repeat('x', 17000000), 1)")
    with pytest.raises(InvalidEvent, match="a row cannot be captured, 'things-4': .*larger than"):
        things.drain()


REFUSED = [
    ("CREATE TABLE t (a int)", "t", "no primary key"),
    ("CREATE UNLOGGED TABLE t (a int PRIMARY KEY)", "t", "unlogged"),
    ("CREATE VIEW t AS SELECT 1 AS a", "t", "it is no table"),
    ("CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", "t", "REPLICA IDENTITY NOTHING"),
    (
        "CREATE TABLE p (a int PRIMARY KEY) PARTITION BY LIST (a); CREATE TABLE t PARTITION OF p FOR VALUES IN (1)",
        "t",
        "it is a partition",
    ),
    ('CREATE TABLE "größer" (a int PRIMARY KEY)', '"größer"', "streams are named after it"),
    ("SELECT 1", "absent", "there is no table"),
    ("SELECT 1", "x.y.z", "is not the name of a table"),
    ("SELECT 1", "outbox.event", "the system's or the product's own"),
    ("SELECT 1", "pg_class", "the system's or the product's own"),
]


@pytest.mark.parametrize(("made", "name", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_a_table_that_cannot_be_captured_is_refused_in_one_line(database, made, name, said):
    with captured(database) as one:
        one.db.execute(made)
        with pytest.raises(SettingsError, match=said) as refused:
            one.add(name)
        assert "\n" not in str(refused.value)
        assert one.one("SELECT count(*) FROM outbox.capture") == (0,)


def test_a_category_in_use_for_other_events_is_refused(things):
    things.db.execute("CREATE TABLE cat (id int PRIMARY KEY)")
    with connected(things.dsn) as connection:
        append(connection, "cat-1", NewEvent("entity.deleted", {}), registry=default_registry())
    with pytest.raises(SettingsError, match=r"entity.deleted events in category 'cat'"):
        things.add("cat")


def test_a_table_that_was_made_anew_under_its_name_is_not_taken_for_the_old_one(things):
    things.drain()
    things.db.execute("DROP TABLE things")
    things.db.execute(THINGS)
    with pytest.raises(SettingsError, match="--drop things"):
        things.add("things")
    things.drain()  # what is left of it is in the log, and no reason to fail
    things.capture().drop("things")
    things.add("things")
    things.drain()
    assert things.rows("things") == {}


def test_a_unique_index_may_identify_rows(database):
    with captured(database) as one:
        one.db.execute("CREATE TABLE t (a int, b text NOT NULL UNIQUE)")
        one.db.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_b_key")
        one.add("t")
        one.drain()
        one.db.execute("INSERT INTO t VALUES (1, 'x')")
        one.db.execute("UPDATE t SET b = 'y'")
        one.db.execute("DELETE FROM t")
        one.drain()
        assert [e.stream for e in one.events()] == ["t-x", "t-x", "t-y", "t-y"]
        assert one.rows("t") == {}


def test_partitions_are_their_table_and_what_is_done_to_them_is_seen(database):
    with captured(database) as one:
        one.db.execute("CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id)")
        for low in (0, 100):
            one.db.execute(f"CREATE TABLE t{low} PARTITION OF t FOR VALUES FROM ({low}) TO ({low + 100})")
        one.db.execute("INSERT INTO t VALUES (1, 1), (101, 1)")
        one.add("t")
        one.drain()
        one.db.execute("UPDATE t SET id = 150 WHERE id = 1")
        one.db.execute("INSERT INTO t0 VALUES (2, 2)")
        one.drain()
        assert one.equal("t")
        one.db.execute("CREATE TABLE t200 (id int PRIMARY KEY, n int)")
        one.db.execute("INSERT INTO t200 VALUES (201, 1)")
        one.db.execute("ALTER TABLE t ATTACH PARTITION t200 FOR VALUES FROM (200) TO (300)")
        one.db.execute("TRUNCATE t0")
        one.db.execute("ALTER TABLE t DETACH PARTITION t100")
        one.drain()
        assert one.rows("t") == {"t-201": {"id": 201, "n": 1}}


def test_children_by_inheritance_are_tables_of_their_own(things):
    things.db.execute("CREATE TABLE child () INHERITS (things)")
    things.db.execute("INSERT INTO child VALUES (77, 'child', 1)")
    things.drain()
    things.db.execute("INSERT INTO child VALUES (78, 'child', 1)")
    things.drain()
    assert set(things.rows("things")) == {"things-1", "things-2", "things-3"}


def test_generated_columns_that_are_stored_are_columns(database):
    with captured(database) as one:
        one.db.execute(
            "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED,"
            " thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL)"
        )
        one.db.execute("INSERT INTO t VALUES (1, 1)")
        one.add("t")
        one.drain()
        one.db.execute("INSERT INTO t VALUES (2, 2)")
        one.db.execute("UPDATE t SET a = 3 WHERE id = 1")
        one.drain()
        assert one.rows("t") == {"t-1": {"id": 1, "a": 3, "twice": 6}, "t-2": {"id": 2, "a": 2, "twice": 4}}


def test_a_table_rewritten_since_its_snapshot_is_not_taken_for_empty(things):
    things.drain()
    with psycopg.connect(things.dsn) as exporting, connected(things.dsn) as log:
        (name,) = exporting.execute("SELECT pg_export_snapshot()").fetchone()
        with at_snapshot(things.dsn, name) as seeing:
            exporting.rollback()
            things.db.execute("ALTER TABLE things ALTER COLUMN price TYPE float8")
            writer = Writer(log, default_registry(), registered.begin(log, "capture", 1_000), lambda: None)
            (table,) = registered.tables(log, "capture")
            with pytest.raises(DatabaseError, match="was rewritten"):
                Snapshot(seeing, writer, "test", writer.standing.lsn, lambda *_: None).settle(table)
    assert len(things.events()) == 3


def test_a_table_is_altered_while_writers_go_on_and_no_row_falls_back(things):
    things.db.execute("INSERT INTO things SELECT g, 'n', 0 FROM generate_series(10, 400) g")
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            turn = 0
            while not stop.is_set():
                turn += 1
                connection.execute("UPDATE things SET price = %s WHERE id = %s", [turn, 10 + turn % 390])

    writer = threading.Thread(target=write)
    with things.running():
        things.until(lambda: "things-400" in things.rows("things"))
        writer.start()
        try:
            for turn in range(3):
                things.db.execute(f"ALTER TABLE things ADD COLUMN c{turn} int DEFAULT {turn}")
                things.until(lambda turn=turn: f"c{turn}" in things.rows("things")["things-1"])
        finally:
            stop.set()
            writer.join()
    things.drain()
    rows = {s: {**r, "price": str(r["price"])} if "price" in r else r for s, r in things.table("things").items()}
    assert things.rows("things") == rows
    prices = [float(e.data["columns"]["price"]) for e in things.events() if e.stream == "things-10"]
    assert prices == sorted(prices)  # what a snapshot says is never older than what the stream said before it
