"""Reading in pages gives what one plain SELECT gives, from anywhere, in flat memory."""

from __future__ import annotations

import tracemalloc
from functools import partial

import psycopg
import pytest
from psycopg.rows import dict_row

from outbox.codec import default_registry
from outbox.database import connected
from outbox.errors import UnknownEventType
from outbox.log.append import append
from outbox.log.bulk import bulk_append
from outbox.log.read import (
    categories,
    read_all,
    read_below,
    read_by_stream,
    read_category,
    read_stream,
    version_of,
)
from tests.alongside import alongside
from tests.integration.appending import event

REGISTRY = default_registry()
STREAMS = ["a-1", "a", "a-", "a-2-b", "a.b-1", "a.b", "a0-1", "a_-1", "aa-1", "A-1", "b-ä", "b-𝄞", "b-z", "c-1"]
PAGES = [1, 2, 3, 7, 1_000]


@pytest.fixture(scope="module")
def log(module_database):
    with psycopg.connect(module_database, autocommit=True) as connection:
        for round_ in range(4):
            for n, stream in enumerate(STREAMS):
                if (n + round_) % 3:
                    append(connection, stream, [event(f"{stream} {round_} {k}") for k in range(1 + n % 3)])
        yield connection


def select(log, condition="true", order="position", **parameters):
    query = f"SELECT stream, version, position, id FROM outbox.event WHERE {condition} ORDER BY {order}"
    return log.execute(query, parameters).fetchall()


def told(events):
    return [(e.stream, e.version, e.position, e.id) for e in events]


def test_every_character_is_read_whatever_the_environments_encoding(database, monkeypatch):
    with psycopg.connect(database, autocommit=True) as connection:
        append(connection, "a-語", event())
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connected(database) as connection:
        assert [e.stream for e in read_all(connection, REGISTRY)] == ["a-語"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream(log, stream, page):
    whole = select(log, "stream = %(s)s", "version", s=stream)
    assert whole
    for after in range(len(whole) + 1):
        assert told(read_stream(log, stream, REGISTRY, after=after, page=page)) == whole[after:]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("category", ["a", "a.b", "a0", "A", "b", "nothing"])
def test_a_category(log, category, page):
    whole = select(log, "split_part(stream, '-', 1) = %(c)s", c=category)
    for after in [0, *[row[2] for row in whole]]:
        expected = [row for row in whole if row[2] > after]
        assert told(read_category(log, category, REGISTRY, after=after, page=page)) == expected


def test_the_categories(log, database):
    assert categories(log) == sorted({stream.partition("-")[0] for stream in STREAMS})
    with psycopg.connect(database) as empty:
        assert categories(empty) == []


@pytest.mark.parametrize("page", PAGES)
def test_everything(log, page):
    whole = select(log)
    for after in [0, *[row[2] for row in whole[::5]], 10**9]:
        assert told(read_all(log, REGISTRY, after=after, page=page)) == [row for row in whole if row[2] > after]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("categories", [None, ["a"], ["a.b", "a"], ["b", "A", "a_", "b"], ["nothing"], []])
def test_stream_by_stream(log, page, categories):
    condition = "true" if categories is None else "split_part(stream, '-', 1) = ANY (%(c)s)"
    whole = select(log, condition, "stream, version", c=categories)
    for after in ["", *STREAMS, "a-1x", "zzz"]:
        expected = [row for row in whole if row[0].encode() > after.encode()]
        events = read_by_stream(log, REGISTRY, categories=categories, after_stream=after, page=page)
        assert told(events) == expected


def test_below(log):
    below = {"a-1": 3, "b-ä": 1, "c-1": 100, "nothing-1": 5, "a": 2}
    whole = select(log, "true", "stream, version")
    assert told(read_below(log, below, REGISTRY)) == [row for row in whole if row[1] < below.get(row[0], 0)]
    assert told(read_below(log, {}, REGISTRY)) == []


def test_below_given_up_half_way_leaves_the_connection_free(log):
    events = read_below(log, {"a-1": 100, "c-1": 100}, REGISTRY)
    next(events)
    events.close()
    assert log.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert told(read_below(log, {"a-1": 2}, REGISTRY)) == select(log, "stream = 'a-1' AND version < 2")


def test_the_version_of_a_stream(log):
    assert version_of(log, "nothing-1") == 0
    assert version_of(log, "a-1") == len(select(log, "stream = 'a-1'"))


def test_the_readers_row_factory_does_not_matter(log, module_database):
    with psycopg.connect(module_database, row_factory=dict_row) as connection:
        assert told(read_all(connection, REGISTRY)) == select(log)
        assert told(read_below(connection, {"a-1": 2}, REGISTRY)) == select(log, "stream = 'a-1' AND version < 2")
        assert version_of(connection, "a-1") == version_of(log, "a-1")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
def test_the_readers_encoding_does_not_matter(database, encoding):
    with psycopg.connect(database) as connection:
        append(connection, "a-é", event(meta={"é": "é"}))
    with psycopg.connect(database, client_encoding=encoding) as connection:
        found = [*read_stream(connection, "a-é", REGISTRY), *read_category(connection, "a", REGISTRY)]
        assert [(e.stream, e.type, e.meta) for e in found] == [("a-é", "entity.upserted", {"é": "é"})] * 2
        assert categories(connection) == ["a"]


def test_an_event_comes_back_as_it_was_given(log):
    given = event("ä", meta={"correlation_id": "x", "n": 1.5})
    answer = append(log, "given-1", given)
    (got,) = read_stream(log, "given-1", REGISTRY)
    assert (got.type, got.id, got.meta, got.category) == (given.type, given.id, given.meta, "given")
    assert (got.version, got.position) == (1, answer.positions[0])
    assert got.data["name"] == "ä"
    assert got.at.utcoffset() is not None


def test_a_type_nobody_knows_is_named(database):
    with psycopg.connect(database) as connection:
        append(connection, "a-1", event())
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        connection.execute("UPDATE outbox.event SET type = 'no.such'")
        with pytest.raises(UnknownEventType, match=r"no\.such"):
            list(read_all(connection, REGISTRY))


@pytest.mark.parametrize("read", [read_all, read_by_stream, read_category, read_stream, read_below])
def test_memory_stays_flat_however_long_the_log_is(large, read):
    more = {read_category: ["big"], read_stream: ["big-1"], read_below: [{"big-1": 10**6, "big-2": 10**6}]}
    arguments = (large, *more[read], REGISTRY) if read in more else (large, REGISTRY)
    tracemalloc.start()
    events = sum(1 for _ in read(*arguments))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert events == (25_000 if read is read_stream else 50_000)
    assert peak < 8_000_000  # a page is about 2 MB; all of it would be 100


@pytest.fixture(scope="module")
def large(new_database):
    with psycopg.connect(new_database(), autocommit=True) as connection:
        batches = ((f"big-{1 + n % 2}", "any", [event("x" * 100) for _ in range(500)]) for n in range(100))
        bulk_append(connection, batches)
        yield connection


def test_pages_of_a_large_log_use_an_index(large):
    from outbox.log.read import _ALL, _BY_STREAM, _CATEGORY, _STREAM

    large.execute("ANALYZE outbox.event")
    parameters = {"stream": "big-1", "after": 20_000, "category": "big", "version": 100, "below": "big.", "page": 100}
    for query in (_ALL, _BY_STREAM, _CATEGORY, _STREAM):
        lines = psycopg.ClientCursor(large).execute(f"EXPLAIN {query}", parameters).fetchall()
        plan = "\n".join(line for (line,) in lines)
        assert "Index Scan" in plan, plan
        assert "Sort" not in plan, plan


def test_readers_beside_appenders_see_each_stream_without_gaps(database):
    """What is read may end anywhere, but it never skips within a stream that is read by version."""

    def write(number, ended):
        with psycopg.connect(database) as connection:
            while not ended.is_set():
                append(connection, f"busy-{number}", [event(), event()])
                connection.commit()

    with alongside(*(partial(write, n) for n in range(3))), psycopg.connect(database, autocommit=True) as connection:
        while min(version_of(connection, f"busy-{n}") for n in range(3)) < 100:
            for n in range(3):
                versions = [e.version for e in read_stream(connection, f"busy-{n}", REGISTRY, page=10)]
                assert versions == list(range(1, len(versions) + 1))
            found: dict[str, list[int]] = {}
            for e in read_by_stream(connection, REGISTRY, categories=["busy"], page=10):
                found.setdefault(e.stream, []).append(e.version)
            assert all(v == list(range(1, len(v) + 1)) for v in found.values())
