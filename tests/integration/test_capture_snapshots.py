"""Capture: looks at all rows of a table, the first one and those after an end, a loss or a wish."""

from __future__ import annotations

import random
import threading
from functools import partial

import psycopg
import pytest

from outbox.capture import names
from outbox.database import connected
from outbox.errors import SettingsError
from outbox.event import NewEvent
from outbox.log.append import append
from tests.alongside import alongside
from tests.capturing import things, told  # noqa: F401


def test_a_snapshot_joins_the_stream_while_writers_go_on(things):
    def write(seed: int, ended: threading.Event) -> None:
        choose = random.Random(seed)
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            while not ended.is_set():
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

    things.db.execute("INSERT INTO things SELECT g, 'old', 0 FROM generate_series(10000, 20000) g")
    with alongside(partial(write, 0), partial(write, 1)):
        things.drain()
        things.drain()
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
