"""The relay as it runs: it outlives the database's and the broker's failures, and its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from outbox.errors import BrokerUnavailable, DatabaseError
from outbox.log.append import append
from outbox.relay.parking import Parking
from outbox.relay.relay import Relay, RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, down, first_occurrences, lose_lease, relaying, until

QUICK = RelaySettings(lease_s=0.6, retry_s=0.02, page_min=10)


def holder(producer):
    return producer.execute("SELECT holder, epoch FROM outbox.lease WHERE expires_at > clock_timestamp()").fetchone()


def test_a_running_relay_publishes_what_is_committed(database, producer):
    recorder = Recorder()
    with relaying(database, recorder, QUICK):
        for n in range(30):
            append(producer, "order-1", event(), expected=n)
            until(lambda n=n: len(recorder.messages) == n + 1)


def test_a_relay_stopped_lets_the_next_one_in_at_once(database, producer):
    with relaying(database, Recorder(), RelaySettings(lease_s=3600)):
        until(lambda: holder(producer))
    assert holder(producer) is None


def test_only_one_of_several_leads_and_a_stand_by_follows(database, producer):
    recorder = Recorder()
    with relaying(database, recorder, QUICK):
        with relaying(database, recorder, QUICK):
            first = until(lambda: holder(producer))
            append(producer, "order-1", [event() for _ in range(20)])
            until(lambda: len(recorder.messages) == 20)
            assert holder(producer) == first
        append(producer, "order-1", [event() for _ in range(20)])
        until(lambda: len(recorder.messages) == 40)
    assert recorder.versions("order-1") == list(range(1, 41))


def test_a_leader_halted_in_the_midst_of_its_transaction_holds_nobody_up(database, producer, monkeypatch):
    halted, goes_on, write = threading.Event(), threading.Event(), Parking.write

    def halting(parking):
        if not halted.is_set():
            halted.set()
            goes_on.wait(60)
        write(parking)

    monkeypatch.setattr(Parking, "write", halting)
    monkeypatch.setattr("outbox.database.HALTED_MS", 500)
    recorder = Recorder()
    recorder.refuse = {"order-2"}
    append(producer, "order-2", event())
    with relaying(database, recorder, QUICK):
        assert halted.wait(20)
        lose_lease(producer)
        with relaying(database, recorder, QUICK):
            append(producer, "order-1", event())
            try:
                until(lambda: recorder.versions("order-1") == [1])
            finally:
                goes_on.set()
    assert producer.execute("SELECT count(DISTINCT key) FROM outbox.parked").fetchone() == (1,)


def test_the_relay_goes_on_when_the_broker_comes_back(database, producer):
    recorder, refused = Recorder(), threading.Event()

    def fault(messages):
        refused.set()
        down(messages)

    recorder.fault = fault
    append(producer, "order-1", [event() for _ in range(25)])
    with relaying(database, recorder, QUICK):
        until(refused.is_set)
        recorder.fault = lambda messages: None
        until(lambda: len(recorder.messages) >= 25)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 26))


def test_the_relay_goes_on_by_itself_when_postgres_ends_its_connections(database, producer):
    recorder = Recorder()
    with relaying(database, recorder, QUICK):
        for round_ in range(5):
            append(producer, "order-1", [event() for _ in range(100)])
            until(lambda round_=round_: len(recorder.messages) > round_ * 100)
            producer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'outbox'"
            )
        until(lambda: len(set(recorder.versions("order-1"))) == 500)
    assert first_occurrences(recorder.versions("order-1")) == list(range(1, 501))


def test_a_relay_that_cannot_connect_or_finds_no_tables_waits_and_says_so(empty_database, capsys):
    from outbox.database import connected
    from outbox.log.migrate import migrate

    recorder = Recorder()
    with relaying(empty_database, recorder, QUICK), connected(empty_database) as connection:
        until(lambda: "outbox migrate" in capsys.readouterr().out)
        migrate(connection)
        append(connection, "order-1", event())
        until(lambda: recorder.messages)


def test_draining_ends_once_nothing_is_left(database, producer):
    recorder = Recorder()
    append(producer, "order-1", [event() for _ in range(2_000)])
    Relay(database, lambda: recorder, QUICK).run(threading.Event(), drain=True)
    assert recorder.versions("order-1") == list(range(1, 2_001))


def test_draining_raises_what_stands_in_its_way(database, producer):
    recorder = Recorder()
    recorder.fault = down
    append(producer, "order-1", event())
    with pytest.raises(BrokerUnavailable):
        Relay(database, lambda: recorder, QUICK).run(threading.Event(), drain=True)
    with pytest.raises(DatabaseError, match="cannot be reached"):
        Relay("host=127.0.0.1 port=9 user=x dbname=y", lambda: recorder, QUICK).run(threading.Event(), drain=True)


PROGRAM = """
import sys, threading
from outbox.broker.local import LocalBroker
from outbox.relay.parking import Parking
from outbox.relay.relay import Relay, RelaySettings
dsn = sys.argv[1]
Relay(dsn, lambda: LocalBroker(dsn), RelaySettings(lease_s=0.6, page_min=10, page_max=50)).run(threading.Event())
"""


@pytest.fixture
def spawn(database):
    started = []

    def start():
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, database], stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_relays_killed_in_mid_run_lose_and_invert_nothing(database, producer, spawn):
    from outbox.broker.local import LocalBroker

    consumer = LocalBroker(database).consumer("g", ["outbox.order"], lambda partition: None)
    seen: list[int] = []

    def poll():
        seen.extend(int(d.headers["version"]) for d in consumer.poll(500, 0.05))
        return len(set(seen))

    for round_ in range(3):
        process = spawn()
        append(producer, "order-1", [event() for _ in range(1_000)])
        until(lambda round_=round_: poll() > round_ * 1_000, 60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    spawn()
    until(lambda: poll() == 3_000, 60)
    assert first_occurrences(seen) == list(range(1, 3_001))
    consumer.close()


def test_a_relay_frozen_past_its_lease_is_replaced_and_does_no_harm_when_it_thaws(database, producer, spawn):
    from outbox.broker.local import LocalBroker

    consumer = LocalBroker(database).consumer("g", ["outbox.order"], lambda partition: None)
    seen: list[int] = []

    def poll():
        seen.extend(int(d.headers["version"]) for d in consumer.poll(500, 0.05))
        return len(set(seen))

    frozen = spawn()
    append(producer, "order-1", event())
    until(lambda: poll() == 1, 60)
    first = holder(producer)
    os.kill(frozen.pid, signal.SIGSTOP)
    spawn()
    append(producer, "order-1", [event() for _ in range(500)])
    until(lambda: poll() == 501, 60)
    second = holder(producer)
    assert second[1] > first[1]
    os.kill(frozen.pid, signal.SIGCONT)
    append(producer, "order-1", [event() for _ in range(500)])
    until(lambda: poll() == 1_001, 60)
    assert first_occurrences(seen) == list(range(1, 1_002))
    consumer.close()
