"""A log or a source that is somewhere else from now on: moved by dump and restore, by pg_upgrade, or gone."""

from __future__ import annotations

import psycopg
import pytest

from outbox.errors import SettingsError
from tests.capturing import THINGS, Captured, captured, things  # noqa: F401

SLOTS = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
KEPT = ("event", "lease", "capture", "captured")
"""What capture has in the log's database."""


def moved(log: str, to: str) -> None:
    """What a dump and a restore into another database leave."""
    with psycopg.connect(log) as old, psycopg.connect(to) as new:
        for table in KEPT:
            with (
                old.cursor().copy(f"COPY outbox.{table} TO STDOUT") as read,
                new.cursor().copy(f"COPY outbox.{table} FROM STDIN") as written,
            ):
                for data in read:
                    written.write(data)
        new.execute(
            "SELECT setval(pg_get_serial_sequence('outbox.event', 'position'), max(position)) FROM outbox.event"
        )


@pytest.fixture
def elsewhere(new_database, empty_database):
    """A table in another database than the log's, captured."""
    with captured(new_database(), empty_database) as one:
        one.db.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        one.db.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
        one.add("things")
        one.drain()
        yield one


def test_a_log_that_was_moved_goes_on_with_a_slot_of_its_own_and_misses_nothing(elsewhere, new_database):
    """Its publication has another name now, which the old slot's changes were made without."""
    elsewhere.db.execute("UPDATE things SET name = 'zwei' WHERE id = 2")
    elsewhere.db.execute("DELETE FROM things WHERE id = 1")
    former = elsewhere.db.execute(SLOTS).fetchall()
    moved(elsewhere.dsn, to := new_database())
    log = Captured(to, elsewhere.source)
    log.drain()
    assert log.equal("things")
    now = log.db.execute(SLOTS).fetchall()
    log.db.close()
    assert len(now) == 1
    assert now != former, "nothing keeps the source's write-ahead log for a log that is gone"


def test_a_source_that_was_moved_is_captured_again_from_where_it_is_now(things, empty_database):
    things.drain()
    before = things.events()[-1].position
    with captured(things.dsn, empty_database) as now:
        now.db.execute("CREATE TABLE others (id int)")  # so that no oid is what it was
        now.db.execute(THINGS)
        now.db.execute("INSERT INTO things VALUES (1, 'one', 1.10), (2, 'zwei', 2.20)")
        for refused in (
            lambda: now.add("things"),
            now.drain,
            lambda: now.capture().drop("things"),
        ):
            with pytest.raises(SettingsError, match="--forget"):
                refused()
        forgotten = now.capture().forget()
        assert forgotten.categories == ("things",)
        assert things.db.execute(SLOTS).fetchall() == [(forgotten.slot,)]
        now.add("things")
        now.drain()
        assert [(e.stream, e.type) for e in now.events(before)] == [
            ("things-2", "row.updated"),
            ("things-3", "row.deleted"),
        ]
        assert {stream: row["name"] for stream, row in now.rows("things").items()} == {
            "things-1": "one",
            "things-2": "zwei",
        }


def test_a_capture_that_runs_is_not_forgotten(things):
    with things.running():
        things.until(lambda: things.rows("things"))
        with pytest.raises(SettingsError, match="stop it first"):
            things.capture().forget()
    things.capture().forget()
    with pytest.raises(SettingsError, match="no capture"):
        things.capture().forget()
