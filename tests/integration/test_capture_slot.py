"""Capture: its slot keeps no more of the source's write-ahead log than it must, and does not outlive it."""

from __future__ import annotations

from dataclasses import replace

from outbox.capture import source
from outbox.relay import slot as slots
from tests.capturing import QUICK, things  # noqa: F401


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
