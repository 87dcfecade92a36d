"""Appending beside other appenders, at every isolation level, and through a connection that dies."""

from __future__ import annotations

import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row

from outbox.codec import default_registry
from outbox.errors import DatabaseError, DuplicateEvent, VersionConflict
from outbox.log.append import append, append_async, send
from tests.integration.appending import event


@pytest.fixture
def stream():
    return f"order-{uuid.uuid4()}"


@pytest.fixture
def two(module_database):
    with psycopg.connect(module_database) as a, psycopg.connect(module_database) as b:
        yield a, b
        a.rollback()
        b.rollback()


@pytest.fixture
def look(module_database):
    with psycopg.connect(module_database, autocommit=True) as connection:
        yield lambda query, *values: connection.execute(query, values).fetchall()


def waits(look, connection):
    """Whether the connection's server process waits for another transaction."""
    return look("SELECT cardinality(pg_blocking_pids(%s)) > 0", connection.info.backend_pid) == [(True,)]


class Behind:
    """Runs an append in a thread, and is known to wait for the other transaction before the test goes on."""

    def __init__(self, look, connection, *arguments, **more):
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(append, connection, *arguments, **more)
        while not waits(look, connection):
            assert not self._future.done(), self._future.result()

    def result(self):
        return self._future.result(10)


def test_who_waited_for_a_commit_appends_after_it(two, stream, look):
    a, b = two
    append(a, stream, [event(), event()])
    behind = Behind(look, b, stream, [event(), event()], expected="any")
    a.commit()
    assert behind.result().version == 4


def test_who_waited_for_a_rollback_takes_its_place(two, stream, look):
    a, b = two
    append(a, stream, [event(), event()], expected="none")
    behind = Behind(look, b, stream, [event(), event()], expected="none")
    a.rollback()
    assert behind.result().version == 2


@pytest.mark.parametrize("size", [1, 2])
def test_who_waited_for_a_commit_at_an_exact_version_has_a_conflict(two, stream, look, size):
    a, b = two
    append(a, stream, event())
    behind = Behind(look, b, stream, [event() for _ in range(size)], expected=0)
    a.commit()
    with pytest.raises(VersionConflict) as caught:
        behind.result()
    assert caught.value.actual == 1
    assert append(b, stream, event(), expected=1).version == 2


def test_the_same_events_sent_twice_at_once_stand_once(two, stream, look):
    a, b = two
    batch = [event(), event()]
    first = append(a, stream, batch)
    behind = Behind(look, b, stream, batch)
    a.commit()
    assert behind.result().repeated
    assert behind.result().positions == first.positions


def test_a_repetition_waits_for_the_transaction_that_wrote_not_for_its_own(two, stream):
    """The repeating transaction may be the older one: a token of its own would be published too early."""
    a, b = two
    a.execute("SELECT pg_current_xact_id()")
    e = event()
    wrote = append(b, stream, e)
    b.commit()
    assert append(a, stream, e).token == wrote.token


@pytest.mark.parametrize("expected", ["none", "any"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_repetition_alone_waits_for_nothing_of_its_own(two, stream, expected, size):
    """An idle relay has no reason to look past a transaction that writes nothing."""
    a, b = two
    events = [event() for _ in range(size)]
    wrote = append(b, stream, events, expected=expected)
    b.commit()
    assert append(a, stream, events, expected=expected).token == wrote.token


def test_an_id_taken_meanwhile_by_another_stream_is_a_duplicate(two, stream, look):
    a, b = two
    taken = event()
    append(a, f"{stream}-other", taken)
    behind = Behind(look, b, stream, [event(), taken])
    a.commit()
    with pytest.raises(DuplicateEvent):
        behind.result()
    assert append(b, stream, event(), expected="none").version == 1


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("size", [1, 3])
def test_above_read_committed_a_lost_race_is_the_drivers_serialization_failure(two, stream, level, size):
    a, b = two
    b.isolation_level = level
    b.execute("SELECT 1")  # its snapshot is taken here
    append(a, stream, event())
    a.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        append(b, stream, [event() for _ in range(size)], expected="any")
    b.rollback()
    assert append(b, stream, event(), expected=1).version == 2


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_above_read_committed_an_id_out_of_sight_does_not_spin_for_ever(two, stream, level):
    a, b = two
    b.isolation_level = level
    b.execute("SET LOCAL statement_timeout = '5s'")
    b.execute("SELECT 1")
    taken = event()
    append(a, f"{stream}-other", taken)
    a.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        append(b, stream, [event(), taken])


@pytest.mark.parametrize("level", IsolationLevel)
def test_a_conflict_in_sight_is_a_version_conflict_at_every_level(two, stream, level):
    a, b = two
    append(a, stream, event())
    a.commit()
    b.isolation_level = level
    with pytest.raises(VersionConflict):
        append(b, stream, [event(), event()], expected=0)
    assert append(b, stream, [event(), event()], expected=1).version == 3
    b.commit()


def test_of_many_that_want_the_same_version_exactly_one_wins(module_database, stream):
    start = threading.Barrier(6)

    def want(version):
        with psycopg.connect(module_database) as connection:
            start.wait()
            try:
                return append(connection, stream, [event() for _ in range(2)], expected=version).version
            except VersionConflict as conflict:
                assert conflict.actual == version + 2
                return None

    with ThreadPoolExecutor(6) as pool:
        for round_ in range(5):
            answers = list(pool.map(want, [round_ * 2] * 6))
            assert sorted(a for a in answers if a) == [round_ * 2 + 2]


def test_many_appenders_make_one_stream_without_gaps_and_with_rising_places(module_database, stream, look):
    def write(seed):
        with psycopg.connect(module_database) as connection:
            for n in range(25):
                append(connection, stream, [event() for _ in range(1 + (seed + n) % 3)])
                connection.rollback() if (seed + n) % 5 == 0 else connection.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    rows = look(
        "SELECT version, position, seq FROM outbox.event JOIN outbox.outbox USING (position)"
        " WHERE stream = %s ORDER BY version",
        stream,
    )
    assert [v for v, _, _ in rows] == list(range(1, len(rows) + 1))
    assert [p for _, p, _ in rows] == sorted(p for _, p, _ in rows)
    assert [s for _, _, s in rows] == sorted(s for _, _, s in rows)


@pytest.mark.parametrize("expected", ["none", "any"])
@pytest.mark.parametrize("committed", [True, False])
def test_after_a_lost_answer_to_commit_the_same_append_tells_and_writes_once(
    module_database, stream, look, expected, committed
):
    """The producer cannot know whether the connection died before or after the commit. It need not."""
    batch = [event(), event()]
    dying = psycopg.connect(module_database)
    first = append(dying, stream, batch, expected=expected)
    if committed:
        dying.pgconn.send_query(b"COMMIT")  # sent, and its answer never read
        while look("SELECT state FROM pg_stat_activity WHERE pid = %s", dying.info.backend_pid) != [("idle",)]:
            pass
    look("SELECT pg_terminate_backend(%s, 5000)", dying.info.backend_pid)
    dying.close()
    with psycopg.connect(module_database) as connection:
        again = append(connection, stream, batch, expected=expected)
    assert again.repeated == committed
    assert (again.positions == first.positions) == committed
    assert look("SELECT count(*) FROM outbox.event WHERE stream = %s", stream) == [(2,)]


def round_trips(connection, work):
    """How often the server said that it is ready for more, by libpq's own trace."""
    import tempfile

    with tempfile.TemporaryFile("w+") as trace:
        connection.pgconn.trace(trace.fileno())
        try:
            work()
        finally:
            connection.pgconn.untrace()
        trace.seek(0)
        return len(re.findall(r"^(?:\S+ \S+\t)?B\t\d+\tReadyForQuery", trace.read(), re.MULTILINE))


def test_an_append_is_one_round_trip(module_database, stream):
    with psycopg.connect(module_database, prepare_threshold=0) as connection:
        append(connection, stream, event())  # begins, prepares
        append(connection, stream, [event(), event()])
        assert round_trips(connection, lambda: append(connection, stream, [event() for _ in range(48)])) == 1
        assert round_trips(connection, lambda: append(connection, stream, event(), expected=51)) == 1
        with pytest.raises(VersionConflict):
            assert round_trips(connection, lambda: append(connection, stream, event(), expected=1)) == 1
        send(connection, "t", "k", b"")
        assert round_trips(connection, lambda: send(connection, "t", "k", b"")) == 1


@pytest.mark.parametrize("size", [1, 2])
def test_on_an_autocommit_connection_an_append_is_a_transaction_of_one_round_trip(module_database, stream, look, size):
    with psycopg.connect(module_database, autocommit=True, prepare_threshold=0) as connection:
        append(connection, stream, [event() for _ in range(size)])  # prepares
        assert round_trips(connection, lambda: append(connection, stream, [event() for _ in range(size)])) == 1
    query = "SELECT count(*), bool_and(e.xid = o.xid) FROM outbox.event e JOIN outbox.outbox o USING (position)"
    assert look(f"{query} WHERE stream = %s GROUP BY e.xid", stream) == [(size, True)] * 2


def test_the_counter_of_round_trips_counts(module_database):
    with psycopg.connect(module_database) as connection:
        connection.execute("SELECT 1")
        assert round_trips(connection, lambda: [connection.execute("SELECT 1") for _ in range(3)]) == 3


def test_an_append_does_not_change_the_callers_connection(module_database, stream):
    with psycopg.connect(module_database, row_factory=dict_row) as connection:
        append(connection, stream, event())
        assert connection.execute("SELECT 1 AS n").fetchone() == {"n": 1}
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


@pytest.mark.parametrize("size", [1, 2])
def test_the_callers_client_encoding_does_not_matter(module_database, stream, look, size):
    events = [event(f"Ä{n}", meta={"who": f"ä{n}"}) for n in range(size)]
    with psycopg.connect(module_database, client_encoding="latin1") as connection:
        append(connection, f"{stream}-ö", events)
    query = "SELECT meta, data FROM outbox.event WHERE stream = %s ORDER BY version"
    encoded = [default_registry().encode(e.type, e.data) for e in events]
    assert look(query, f"{stream}-ö") == [(e.meta, data) for e, data in zip(events, encoded, strict=True)]


def test_a_savepoint_rolled_back_takes_its_append_along(module_database, stream):
    with psycopg.connect(module_database) as connection:
        append(connection, stream, event())
        with connection.transaction() as savepoint:
            append(connection, stream, event(), expected=1)
            raise psycopg.Rollback(savepoint)
        assert append(connection, stream, event(), expected=1).version == 2


class NotAConnection:
    pass


def test_what_is_no_connection_is_named(stream):
    with pytest.raises(DatabaseError, match=r"append cannot use a .*NotAConnection: give it a psycopg"):
        append(NotAConnection(), stream, event())
    with pytest.raises(DatabaseError, match=r"append cannot use a psycopg\.Cursor"):
        append(psycopg.Cursor.__new__(psycopg.Cursor), stream, event())


def test_asyncio_connections_and_others_are_not_mixed_up(module_database, stream):
    import asyncio

    async def wrongly():
        async with await psycopg.AsyncConnection.connect(module_database) as connection:
            append(connection, stream, event())

    with pytest.raises(DatabaseError, match=r"append cannot use.*append_async takes asyncio ones"):
        asyncio.run(wrongly())
    with psycopg.connect(module_database) as connection:
        with pytest.raises(DatabaseError, match=r"append_async cannot use.*append takes synchronous ones"):
            asyncio.run(append_async(connection, stream, event()))


def test_a_django_connection_to_another_database_is_refused(stream):
    from django.db.backends.sqlite3.base import DatabaseWrapper

    with pytest.raises(DatabaseError, match="this Django connection is to sqlite"):
        append(DatabaseWrapper({"NAME": ":memory:"}), stream, event())


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE outbox.event SET version = version WHERE stream = %(stream)s",
        "DELETE FROM outbox.event WHERE stream = %(stream)s",
        "TRUNCATE outbox.event",
        "INSERT INTO outbox.event SELECT * FROM outbox.event WHERE stream = %(stream)s"
        " ON CONFLICT (id) DO UPDATE SET data = ''",
    ],
)
def test_the_log_refuses_every_change_but_an_erasure_that_says_so(database, stream, change):
    with psycopg.connect(database) as connection:
        append(connection, stream, event())
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            connection.execute(change, {"stream": stream} if "%" in change else None)
        connection.rollback()
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        connection.execute(change, {"stream": stream} if "%" in change else None)
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):  # it does not outlive its transaction
            connection.execute("TRUNCATE outbox.event")
