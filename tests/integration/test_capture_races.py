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
