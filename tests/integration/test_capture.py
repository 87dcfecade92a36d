"""Capture of ordinary tables: what others commit is in the log, in order, once, from the first row on."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from outbox.database import connected
from outbox.errors import SettingsError
from tests.capturing import Captured, captured, things, told  # noqa: F401


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
