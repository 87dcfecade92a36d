"""Bulk loads write what appends write, and what they refuse leaves nothing behind."""

from __future__ import annotations

import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row

from outbox.errors import DatabaseError, DuplicateEvent, InvalidEvent, VersionConflict
from outbox.log.append import append
from outbox.log.bulk import CHUNK_EVENTS, Loaded, bulk_append
from tests.integration.appending import event
from tests.relaying import Recorder, drain, leading, until


@pytest.fixture
def connection(database):
    with psycopg.connect(database) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def look(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda query, *values: connection.execute(query, values).fetchall()


def count(look):
    return look("SELECT (SELECT count(*) FROM outbox.event), (SELECT count(*) FROM outbox.outbox)")[0]


def test_a_load_writes_the_rows_that_appends_write(connection, look):
    batches = [(f"order-{n}", 0, [event(f"ä{n}.{k}", meta={"n": k}) for k in range(3)]) for n in range(4)]
    loaded = bulk_append(connection, batches)
    connection.commit()
    copies = [(s.replace("order", "other"), e, [event(x.data["name"], meta=x.meta) for x in b]) for s, e, b in batches]
    for stream, expected, events in copies:
        append(connection, stream, events, expected=expected)
    connection.commit()
    assert (loaded.batches, loaded.events) == (4, 12)
    assert look("SELECT DISTINCT xid::text FROM outbox.event WHERE stream LIKE 'order%%'") == [(str(loaded.token),)]
    query = (
        "SELECT version, type, data, meta, o.xid = e.xid, o.topic, o.payload FROM outbox.event e"
        " JOIN outbox.outbox o USING (position) WHERE stream LIKE %s ORDER BY stream, seq"
    )
    assert look(query, "order%") == look(query, "other%")
    assert look("SELECT count(*) FROM outbox.event WHERE abs(extract(epoch FROM clock_timestamp() - at)) > 60") == [
        (0,)
    ]
    ids = look("SELECT id FROM outbox.event WHERE stream LIKE 'order%%' ORDER BY stream, version")
    assert ids == [(e.id,) for _, _, events in batches for e in events]


def test_an_empty_load_writes_nothing(connection, look):
    assert bulk_append(connection, []) == Loaded(0, 0, None)


def test_a_load_that_is_the_first_statement_of_its_transaction_is_rolled_back_with_it(connection, look):
    bulk_append(connection, [("order-1", 0, [event()])])
    connection.rollback()
    assert count(look) == (0, 0)


def test_versions_go_on_from_what_stands_and_within_the_load(connection, look):
    append(connection, "order-1", event())
    bulk_append(
        connection,
        [
            ("order-1", 1, [event()]),
            ("order-2", "none", [event()]),
            ("order-1", "exists", [event(), event()]),
            ("order-1", 4, [event()]),
            ("order-2", "any", [event()]),
        ],
    )
    connection.commit()
    rows = look("SELECT stream, version FROM outbox.event JOIN outbox.outbox USING (position) ORDER BY seq")
    assert [v for s, v in rows if s == "order-1"] == [1, 2, 3, 4, 5]
    assert [v for s, v in rows if s == "order-2"] == [1, 2]


@pytest.mark.parametrize("place", ["first chunk", "last chunk"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_conflict_anywhere_leaves_nothing_and_the_transaction_goes_on(database, look, place, autocommit):
    with psycopg.connect(database, autocommit=autocommit) as connection:
        append(connection, "order-0", event())
        batches = [(f"order-{n}", 0, [event() for _ in range(1_000)]) for n in range(1, 13)]
        batches.insert(0 if place == "first chunk" else 12, ("order-0", 5, [event()]))
        with pytest.raises(VersionConflict) as caught:
            bulk_append(connection, batches)
        assert (caught.value.stream, caught.value.expected, caught.value.actual) == ("order-0", "5", 1)
        append(connection, "order-0", event(), expected=1)
        connection.commit()
    assert count(look) == (2, 2)


def test_an_id_that_stands_already_is_named_by_its_batch(connection, look):
    standing = event()
    append(connection, "other-1", standing)
    with pytest.raises(DuplicateEvent) as caught:
        bulk_append(connection, [("order-1", 0, [event()]), ("order-2", 0, [event(), standing])])
    assert caught.value.stream == "order-2"
    connection.commit()
    assert count(look) == (1, 1)


def test_an_id_twice_within_one_load_is_a_duplicate(connection, look):
    twice = event()
    with pytest.raises(DuplicateEvent) as caught:
        bulk_append(connection, [("order-1", 0, [twice]), ("order-2", 0, [twice])])
    assert caught.value.stream in ("order-1", "order-2")
    connection.commit()
    assert count(look) == (0, 0)


def test_a_bad_event_late_in_the_load_leaves_nothing(connection, look):
    def batches():
        yield "order-1", 0, [event() for _ in range(CHUNK_EVENTS)]
        yield "order-2", 0, [event("\x00")]

    with pytest.raises(InvalidEvent):
        bulk_append(connection, batches())
    connection.commit()
    assert count(look) == (0, 0)


def test_the_batches_may_come_from_the_very_connection_that_loads_them(connection, look):
    rows = connection.cursor("source").execute("SELECT generate_series(1, 2500)")
    assert bulk_append(connection, ((f"order-{n}", 0, [event()]) for (n,) in rows)).events == 2_500
    connection.commit()
    assert count(look) == (2_500, 2_500)


def test_an_event_that_is_refused_while_its_chunk_is_sent_leaves_the_transaction_usable(connection, look):
    for bad in (event("\x00"), event(meta={"n": float("nan")})):
        with pytest.raises(InvalidEvent):
            bulk_append(connection, [("order-1", 0, [event() for _ in range(500)]), ("order-2", 0, [event(), bad])])
    assert bulk_append(connection, [("order-1", 0, [event()])]).events == 1
    connection.commit()
    assert count(look) == (1, 1)


def test_a_load_waits_for_an_appender_and_then_conflicts_with_it(database, connection, look):
    """And the other way round: a stream's end is held by whoever wrote it first."""
    append(connection, "order-1", event())
    with psycopg.connect(database) as other, ThreadPoolExecutor(1) as pool:
        future = pool.submit(bulk_append, other, [("order-0", 0, [event()]), ("order-1", "any", [event()])])
        until(lambda: look("SELECT cardinality(pg_blocking_pids(%s)) > 0", other.info.backend_pid) == [(True,)])
        connection.commit()
        with pytest.raises(VersionConflict) as caught:
            future.result()
        assert (caught.value.stream, caught.value.actual) == ("order-1", 1)
        assert bulk_append(other, [("order-1", 1, [event()])]).events == 1
        future = pool.submit(append, connection, "order-1", event())
        until(lambda: look("SELECT cardinality(pg_blocking_pids(%s)) > 0", connection.info.backend_pid) == [(True,)])
        other.commit()
        assert future.result().version == 3
    connection.commit()
    with leading(database, recorder := Recorder()) as leader:
        drain(leader)
    assert recorder.versions("order-1") == [1, 2, 3]


def test_loads_of_many_chunks_beside_appenders_keep_every_stream_in_order(database):
    streams = [f"order-{n}" for n in range(40)]

    def load(seed):
        with psycopg.connect(database) as connection:
            bulk_append(
                connection, [(f"{s}-{seed}", 0, [event() for _ in range(250)]) for s in streams for _ in range(2)][::2]
            )

    def write(seed):
        with psycopg.connect(database, autocommit=True) as connection:
            for n in range(50):
                append(connection, f"mine-{seed}", event(), expected=n)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda work: work[0](work[1]), [(load, 1), (write, 1), (load, 2), (write, 2)]))
    with leading(database, recorder := Recorder()) as leader:
        drain(leader)
    assert len(recorder.messages) == 2 * 40 * 250 + 100
    for stream in set(recorder.keys()):
        versions = recorder.versions(stream)
        assert versions == list(range(1, len(versions) + 1))


def test_memory_is_bounded_by_chunks(connection):
    def batches(n):
        for _ in range(n):
            yield f"order-{uuid.uuid4()}", 0, [event("x" * 100) for _ in range(100)]

    def peak(n):
        tracemalloc.start()
        bulk_append(connection, batches(n))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        connection.rollback()
        return top

    one_chunk = peak(CHUNK_EVENTS // 100)
    assert peak(4 * CHUNK_EVENTS // 100) < 1.5 * one_chunk + 4_000_000


def test_the_connections_row_factory_does_not_matter(database):
    with psycopg.connect(database, row_factory=dict_row) as connection:
        assert bulk_append(connection, [("order-1", 0, [event()])]).events == 1


def test_the_clients_encoding_does_not_matter(database, look):
    with psycopg.connect(database, client_encoding="latin1") as connection:
        bulk_append(connection, [("order-ö", 0, [event("Ä", meta={"who": "ä"})])])
    ((stream, meta),) = look("SELECT stream, meta FROM outbox.event")
    assert (stream, meta) == ("order-ö", {"who": "ä"})


def test_other_connections_are_refused():
    with pytest.raises(DatabaseError, match="psycopg"):
        bulk_append(object(), [])


def test_above_read_committed_a_lost_race_is_the_drivers_own_error(database, connection):
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute("SELECT 1")
    with psycopg.connect(database) as other:
        append(other, "order-1", event())
    with pytest.raises(psycopg.errors.UniqueViolation):
        bulk_append(connection, [("order-1", "any", [event()])])
