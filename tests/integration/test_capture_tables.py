"""Capture: which tables and columns it takes, and what becomes of it when they change."""

from __future__ import annotations

import json
import threading

import psycopg
import pytest

from outbox.capture import leader, registered
from outbox.capture.snapshot import Snapshot
from outbox.capture.source import at_snapshot
from outbox.capture.writer import Writer
from outbox.codec import default_registry
from outbox.database import connected
from outbox.errors import DatabaseError, InvalidEvent, SettingsError
from outbox.event import NewEvent
from outbox.log.append import append
from tests.alongside import alongside
from tests.capturing import THINGS, Captured, captured, things, told  # noqa: F401


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
    from io import BytesIO

    from fastavro import parse_schema, schemaless_reader, schemaless_writer

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
    with pytest.raises(InvalidEvent, match=r"a row cannot be captured, 'things-4': .*larger than"):
        things.drain()


PARTITIONED = "CREATE TABLE t (a int PRIMARY KEY) PARTITION BY LIST (a);"
REFUSED = [
    ("CREATE TABLE t (a int)", "t", "no primary key"),
    ("CREATE TABLE t (a int PRIMARY KEY DEFERRABLE)", "t", "not DEFERRABLE"),
    ("CREATE TABLE t (a int PRIMARY KEY DEFERRABLE); ALTER TABLE t REPLICA IDENTITY FULL", "t", "no primary key that"),
    ("CREATE UNLOGGED TABLE t (a int PRIMARY KEY)", "t", "unlogged"),
    ("CREATE VIEW t AS SELECT 1 AS a", "t", "it is no table"),
    ("CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", "t", "REPLICA IDENTITY NOTHING"),
    (
        "CREATE TABLE p (a int PRIMARY KEY) PARTITION BY LIST (a); CREATE TABLE t PARTITION OF p FOR VALUES IN (1)",
        "t",
        "it is a partition",
    ),
    (f"{PARTITIONED} CREATE UNLOGGED TABLE p PARTITION OF t DEFAULT", "t", "its partition 'p' is a foreign table, unl"),
    (
        f"{PARTITIONED} CREATE TABLE q PARTITION OF t DEFAULT; ALTER TABLE q REPLICA IDENTITY NOTHING",
        "t",
        "its partition 'q'",
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


def test_a_table_that_was_dropped_is_warned_of_once(things, monkeypatch):
    things.db.execute("CREATE TABLE others (id int PRIMARY KEY)")
    things.add("others")
    warned, looks, look = [], [], leader.look
    monkeypatch.setattr(leader.log, "warning", lambda text, **_: warned.append(text))
    with things.running():
        things.until(lambda: len(things.events()) == 3)
        things.db.execute("DROP TABLE others")
        monkeypatch.setattr(leader, "look", lambda *given: (looks.append(None), look(*given))[1])
        things.until(lambda: len(looks) > 8)
    assert warned == ["a captured table was dropped; its rows stay in the log"]


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

    def write(ended: threading.Event) -> None:
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            turn = 0
            while not ended.is_set():
                turn += 1
                connection.execute("UPDATE things SET price = %s WHERE id = %s", [turn, 10 + turn % 390])

    with things.running():
        things.until(lambda: "things-400" in things.rows("things"))
        with alongside(write):
            for turn in range(3):
                things.db.execute(f"ALTER TABLE things ADD COLUMN c{turn} int DEFAULT {turn}")
                things.until(lambda turn=turn: f"c{turn}" in things.rows("things")["things-1"])
    things.drain()
    rows = {s: {**r, "price": str(r["price"])} if "price" in r else r for s, r in things.table("things").items()}
    assert things.rows("things") == rows
    prices = [float(e.data["columns"]["price"]) for e in things.events() if e.stream == "things-10"]
    assert prices == sorted(prices)  # what a snapshot says is never older than what the stream said before it
