"""What others do at the very moment at which a capture looks, appends or ends."""

from __future__ import annotations

import psycopg
import pytest

from outbox.capture import leader, source
from outbox.database import connected
from outbox.errors import DatabaseError
from outbox.event import NewEvent
from outbox.log import bulk
from outbox.log.append import append
from tests.capturing import captured, things, told  # noqa: F401


@pytest.fixture
def two(database):
    """Two tables, of which the second's rows are read last."""
    with captured(database) as one:
        one.db.execute("CREATE TABLE a (id int PRIMARY KEY)")
        one.db.execute("CREATE TABLE b (id int PRIMARY KEY, name text)")
        one.db.execute("INSERT INTO a VALUES (1)")
        one.db.execute("INSERT INTO b VALUES (1, 'mine')")
        one.add("a", "b")
        yield one


def between(one, *statements):
    """What is called as the first table has been read: it alters the second."""

    def tell(done, total, table):
        if table == "public.a":
            for statement in statements:
                one.db.execute(statement)

    return tell


def test_an_event_that_somebody_else_appends_first_is_gone_behind(things, monkeypatch):
    look, others = bulk._versions, []

    def overtaken(cursor, streams):
        found = look(cursor, streams)
        if "things-1" in found and len(others) < 3:
            with connected(things.dsn) as connection:
                others.append(append(connection, "things-1", NewEvent("entity.deleted", {})))
        return found

    things.drain()
    things.db.execute("UPDATE things SET name = 'eins' WHERE id = 1")
    monkeypatch.setattr(bulk, "_versions", overtaken)
    things.drain()
    assert [other.version for other in others] == [2, 3, 4]
    assert told(things.events()[3:]) == [("things-1", 5, "row.updated")]


def test_a_drain_takes_what_was_committed_without_waiting_for_the_disk(things):
    things.db.execute("SET synchronous_commit = off")
    with connected(things.dsn) as connection:
        for n in range(20):
            things.db.execute("UPDATE things SET price = %s WHERE id = 1", [n])
            committed = things.db.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0]
            assert leader._all_by_now(connection) >= committed


def test_a_table_that_takes_anothers_name_while_it_waits_to_be_read_is_not_read_for_it(two):
    two.db.execute("CREATE TABLE c (id int PRIMARY KEY, name text)")
    two.db.execute("INSERT INTO c VALUES (1, 'another table''s')")
    swap = between(two, "ALTER TABLE b RENAME TO d", "ALTER TABLE c RENAME TO b")
    with pytest.raises(DatabaseError, match=r"public\.b was dropped or renamed while its snapshot was taken"):
        two.drain(tell=swap)
    two.drain()
    assert two.rows("b") == {"b-1": {"id": 1, "name": "mine"}}


def test_a_table_that_is_dropped_while_it_waits_to_be_read_is_called_that(two):
    with pytest.raises(DatabaseError, match=r"public\.b was dropped or renamed while its snapshot was taken"):
        two.drain(tell=between(two, "DROP TABLE b"))
    two.drain()
    assert two.rows("a") == {"a-1": {"id": 1}}


def test_a_table_that_is_dropped_before_it_is_published_is_called_that(two, monkeypatch):
    publish = source.publish

    def late(connection, publication, tables):
        two.db.execute("DROP TABLE IF EXISTS b")
        publish(connection, publication, tables)

    monkeypatch.setattr(source, "publish", late)
    with pytest.raises(DatabaseError, match="a captured table was dropped or renamed just now"):
        two.drain()
    two.drain()
    assert two.rows("a") == {"a-1": {"id": 1}}


def test_a_description_that_was_erased_gives_its_number_to_no_other(things):
    things.drain()
    things.db.execute("ALTER TABLE things ADD COLUMN size int DEFAULT 1")
    things.drain()
    with psycopg.connect(things.dsn) as connection:
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        connection.execute("DELETE FROM outbox.event WHERE stream = 'things' AND version = 1")
    things.db.execute("ALTER TABLE things ADD COLUMN weight int DEFAULT 1")
    things.drain()
    described = [e for e in things.all_events() if e.type == "table.described"]
    assert [(e.version, len(e.data["columns"])) for e in described] == [(2, 4), (3, 5)]
    assert {e.data["shape"] for e in things.events() if "weight" in e.data["columns"]} == {3}


def left_in_source(one):
    """Slots and publications."""
    return one.db.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        " UNION ALL SELECT pubname FROM pg_publication WHERE pubname LIKE 'outbox_capture%'"
    ).fetchall()


@pytest.mark.parametrize("begun", [False, True])
def test_a_table_that_is_let_go_as_a_leader_publishes_it_leaves_nothing_in_the_source(things, monkeypatch, begun):
    publish, gone = source.publish, []

    def late(connection, publication, tables):
        if not gone:
            gone.append(things.capture().drop("things"))
        publish(connection, publication, tables)

    if begun:
        things.drain()
    monkeypatch.setattr(source, "publish", late)
    things.drain()
    assert gone
    assert left_in_source(things) == []


def test_when_the_last_table_is_dropped_no_slot_keeps_the_write_ahead_log(things):
    things.drain()
    things.db.execute("DROP TABLE things")
    things.drain()
    assert left_in_source(things) == []
    things.db.execute("CREATE TABLE others (id int PRIMARY KEY)")
    things.db.execute("INSERT INTO others VALUES (1)")
    things.add("others")
    things.drain()
    assert things.equal("others")
    assert len(things.rows("things")) == 3
