"""An idle relay sleeps until a producer wakes it; no row slips between reading and sleeping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from outbox.database import Connection, connected
from outbox.event import NewEvent
from outbox.log.append import append, send
from outbox.log.bulk import bulk_append
from outbox.relay import sleep
from outbox.relay.cursor import BEGINNING, Cursor
from outbox.relay.poll import PLANNING, PollEngine
from outbox.relay.sleep import Sleep
from tests.relaying import until

LONG_S = 60.0


@pytest.fixture
def relay(database: str) -> Iterator[Connection]:
    with connected(database) as connection:
        yield connection


@pytest.fixture
def producer(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database) as connection:
        yield connection


def event() -> NewEvent:
    return NewEvent("entity.deleted", {})


def one(connection: psycopg.Connection) -> None:
    append(connection, "order-1", event())


def several(connection: psycopg.Connection) -> None:
    append(connection, "order-1", [event(), event()])


def plain(connection: psycopg.Connection) -> None:
    send(connection, "topic", "key", b"payload")


def bulk(connection: psycopg.Connection) -> None:
    connection.execute("SELECT 1")  # a transaction is open, in which the load is a savepoint
    bulk_append(connection, [("order-1", "any", [event()])])


class Sleeper:
    """A relay's sleep on a thread of its own; ``woken`` is set when it ends."""

    def __init__(self, connection: Connection) -> None:
        self.sleep = Sleep(connection)
        self.woken = threading.Event()
        self.stop = threading.Event()

    def fall_asleep(self) -> bool:
        self.sleep.wait(self.stop, 0.01)
        return self.sleep.asleep

    def until_woken(self) -> threading.Thread:
        def run() -> None:
            while self.sleep.asleep and not self.stop.is_set():
                self.sleep.wait(self.stop, LONG_S)
            self.woken.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.mark.parametrize("write", [one, several, plain, bulk])
def test_every_way_to_write_wakes_a_sleeping_relay_at_its_commit(
    relay: Connection,
    producer: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[psycopg.Connection], None],
) -> None:
    monkeypatch.setattr(sleep, "SLEEP_MAX_S", LONG_S)
    sleeper = Sleeper(relay)
    assert sleeper.fall_asleep()
    thread = sleeper.until_woken()
    write(producer)
    assert not sleeper.woken.wait(0.3), "woken before the commit, when there is nothing to see"
    producer.commit()
    assert sleeper.woken.wait(10)
    thread.join()


@pytest.mark.parametrize("write", [one, several, plain, bulk])
def test_a_relay_does_not_fall_asleep_while_somebody_is_writing(
    relay: Connection, producer: psycopg.Connection, write: Callable[[psycopg.Connection], None]
) -> None:
    write(producer)
    sleeper = Sleeper(relay)
    assert not sleeper.fall_asleep()
    producer.commit()
    assert sleeper.fall_asleep()


def test_nobody_notifies_a_relay_that_is_awake(relay: Connection, producer: psycopg.Connection) -> None:
    relay.execute("LISTEN outbox")
    for _ in range(3):
        one(producer)
        producer.commit()
    assert list(relay.notifies(timeout=0.2)) == []


def test_a_sleeping_relay_stops_when_told(relay: Connection) -> None:
    sleeper = Sleeper(relay)
    assert sleeper.fall_asleep()
    thread = sleeper.until_woken()
    sleeper.stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_second_relay_pauses_where_the_first_one_sleeps(database: str, relay: Connection) -> None:
    with connected(database) as other:
        assert Sleeper(relay).fall_asleep()
        assert not Sleeper(other).fall_asleep()


def locks(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE locktype = 'advisory' AND datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("woken", [True, False])
def test_what_finds_rows_gives_the_lock_back_with_what_it_reads_next(
    database: str, producer: psycopg.Connection, woken: bool
) -> None:
    producer.autocommit = True
    with connected(database, **PLANNING) as reading:
        engine, stop = PollEngine(reading, "p"), threading.Event()
        cursor = Cursor(BEGINNING, BEGINNING)
        for _ in range(2):  # the lock counts how often it is taken
            engine.wait(stop, 0.01)
            assert locks(producer) == 1
            one(producer)
            if woken:
                engine.wait(stop, 0.01)
            page = engine.read(cursor, 10)
            assert len(page.rows) == 1
            cursor = engine.read(page.cursor, 10).cursor
            assert locks(producer) == 0


def notified(connection: Connection, producer: psycopg.Connection, times: int) -> None:
    """Notifications that arrive while the connection is busy with something else."""
    backlog = connection._notifies_backlog
    assert backlog is not None
    before = len(backlog)
    for n in range(times):
        producer.execute("SELECT pg_notify('outbox', %s)", [str(n)])
        producer.commit()
    until(lambda: connection.execute("SELECT 1") and len(backlog) == before + times)


def test_what_is_told_to_another_relay_that_sleeps_does_not_pile_up(
    relay: Connection, producer: psycopg.Connection, database: str
) -> None:
    sleeping = Sleep(relay)
    with connected(database) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", sleep.LOCK)
        sleeping.wait(threading.Event(), 0.002)
        notified(relay, producer, 100)
        sleeping.wait(threading.Event(), 0.002)
    assert not sleeping.asleep
    assert not relay._notifies_backlog


def test_several_notifications_end_one_sleep(relay: Connection, producer: psycopg.Connection) -> None:
    sleeping = Sleep(relay)
    sleeping.wait(threading.Event(), 0.002)
    assert sleeping.asleep
    notified(relay, producer, 100)
    sleeping.wait(threading.Event(), 0.002)
    assert not sleeping.asleep
    assert not relay._notifies_backlog
