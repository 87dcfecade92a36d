"""A process that captures: one leads, others stand by, a halted one holds nobody up, and it ends with its tables."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import psycopg
import pytest

from outbox.capture import registered
from outbox.capture.snapshot import Snapshot
from outbox.capture.writer import Writer
from outbox.codec import default_registry
from outbox.database import connected
from outbox.relay.lease import Lease
from outbox.relay.replication import Replication
from tests.capturing import QUICK, things, told  # noqa: F401
from tests.relaying import lose_lease

OPEN_WRITERS = """
SELECT count(*) FROM pg_locks
WHERE relation IN ('outbox.event'::regclass, 'outbox.captured'::regclass) AND mode = 'RowExclusiveLock' AND granted
"""


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


def test_a_lease_that_is_let_go_is_not_renewed_once_more(things, monkeypatch):
    """Nobody could lead, or give the capture up, before it had run out."""
    release = Lease.release

    def released(lease, connection):
        release(lease, connection)
        things.until(lambda: held() or not any(t.name == "outbox-lease" for t in threading.enumerate()))

    def held() -> bool:
        return things.one("SELECT expires_at > '-infinity' FROM outbox.lease") == (True,)

    monkeypatch.setattr(Lease, "release", released)
    with things.running():
        things.until(lambda: len(things.events()) == 3)
    assert not held()


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
