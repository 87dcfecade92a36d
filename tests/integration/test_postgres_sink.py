"""What only the PostgreSQL sink promises, on a real server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

from outbox.errors import RecordsRefused, SettingsError, StoreError, StoreUnavailable
from projectors.record import Change, Node, Row, Value
from projectors.sinks.postgres import SCHEMA, PostgresSink, open_sink


@pytest.fixture
def dsn(address: Callable[[str], str]) -> str:
    return address("postgres")


@pytest.fixture
def sink(dsn: str, projection: str) -> Iterator[PostgresSink]:
    with open_sink(projection, {"dsn": dsn}) as sink:
        sink.prepare("g1")
        sink.prepare("g2")
        yield sink
        sink.drop("g1")
        sink.drop("g2")


@pytest.fixture
def other(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def row(key: str, version: int = 1, **columns: object) -> Change:
    return Change(key, f"thing-{key}", version, Row(key, columns))


def view(projection: str) -> sql.Composed:
    return sql.SQL("SELECT key, body ->> 'n' FROM {} ORDER BY key").format(sql.Identifier(SCHEMA, projection))


def backend(sink: PostgresSink) -> int:
    assert sink._connection is not None
    return sink._connection.info.backend_pid


def test_the_view_shows_the_live_rows_of_the_generation_that_serves(
    sink: PostgresSink, projection: str, other: psycopg.Connection
) -> None:
    sink.apply("g1", [row("a", n=1), row("b", n=2), Change("c", "thing-c", 1, None)])
    sink.apply("g2", [row("a", n=10)])
    sink.switch("g1")
    assert other.execute(view(projection)).fetchall() == [("a", "1"), ("b", "2")]
    sink.switch("g2")
    assert other.execute(view(projection)).fetchall() == [("a", "10")]
    sink.apply("g2", [Change("a", "thing-a", 2, None)])
    assert other.execute(view(projection)).fetchall() == []


def test_a_switch_is_one_step_for_those_who_read(
    sink: PostgresSink, projection: str, other: psycopg.Connection
) -> None:
    sink.apply("g1", [row("a", n=1)])
    sink.apply("g2", [row("a", n=2)])
    sink.switch("g1")
    done = threading.Event()

    def read() -> set[str]:
        seen = set()
        while not done.is_set():
            ((_, n),) = other.execute(view(projection)).fetchall()
            seen.add(n)
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for turn in range(60):
            sink.switch("g2" if turn % 2 else "g1")
        done.set()
        assert reading.result() <= {"1", "2"}


def test_dropping_the_generation_that_serves_drops_its_view(
    sink: PostgresSink, projection: str, other: psycopg.Connection
) -> None:
    sink.switch("g1")
    sink.drop("g2")
    assert other.execute(view(projection)).fetchall() == []
    sink.drop("g1")
    with pytest.raises(psycopg.errors.UndefinedTable):
        other.execute(view(projection))


def test_records_that_postgresql_refuses_do_not_keep_the_others_out(sink: PostgresSink) -> None:
    refused = {
        "nul\x00key": row("nul\x00key"),
        "half \ud800": row("half \ud800"),
        "node": Change("node", "thing-node", 1, Node("node", "Kind", "name")),
        "too big": row("too big", n=2**80),
        "deep": Change("deep", "thing-deep", 1, Value("deep", _nested(300))),
    }
    kept = [row(f"k{n}", n=n) for n in range(50)]
    with pytest.raises(RecordsRefused) as caught:
        sink.apply("g1", [*refused.values(), *kept])
    assert caught.value.reasons.keys() == refused.keys()
    assert {stored.key for stored in sink.scan("g1")} == {change.key for change in kept}


def test_a_key_too_long_for_an_index_is_refused_alone(sink: PostgresSink) -> None:
    long = "".join(uuid.uuid4().hex for _ in range(300))
    with pytest.raises(RecordsRefused) as caught:
        sink.apply("g1", [row("a"), row(long), row("b")])
    assert list(caught.value.reasons) == [long]
    assert {stored.key for stored in sink.scan("g1")} == {"a", "b"}


def test_a_lost_connection_is_said_to_be_passing_and_opened_again(
    sink: PostgresSink, other: psycopg.Connection
) -> None:
    sink.apply("g1", [row("a")])
    other.execute("SELECT pg_terminate_backend(%s, 10000)", (backend(sink),))
    with pytest.raises(StoreUnavailable):
        sink.apply("g1", [row("b")])
    sink.apply("g1", [row("b")])
    assert {stored.key for stored in sink.scan("g1")} == {"a", "b"}


def test_a_statement_that_waits_too_long_is_said_to_be_passing(
    dsn: str, sink: PostgresSink, projection: str, other: psycopg.Connection
) -> None:
    sink.apply("g1", [row("a")])
    table = sql.Identifier(SCHEMA, f"{projection}:g1")
    with open_sink(projection, {"dsn": dsn, "timeout_s": 0.2}) as hasty:
        with other.transaction():
            other.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(table))
            with pytest.raises(StoreUnavailable):
                hasty.apply("g1", [row("a", 2)])
        hasty.apply("g1", [row("a", 2)])
        assert [stored.version for stored in hasty.scan("g1")] == [2]


def test_batches_in_opposite_orders_do_not_deadlock(dsn: str, projection: str, sink: PostgresSink) -> None:
    def write(versions: range, keys: range) -> None:
        with open_sink(projection, {"dsn": dsn}) as mine:
            for version in versions:
                mine.apply("g1", [row(f"k{n}", version) for n in keys])

    with ThreadPoolExecutor(2) as pool:
        for writing in [pool.submit(write, range(1, 31), keys) for keys in (range(500), range(499, -1, -1))]:
            writing.result()
    assert {stored.version for stored in sink.scan("g1")} == {30}


def test_a_generation_that_was_not_prepared_is_an_error_that_says_so(sink: PostgresSink) -> None:
    with pytest.raises(StoreError, match="does not exist") as caught:
        sink.apply("g3", [row("a")])
    assert not isinstance(caught.value, StoreUnavailable)


@pytest.mark.parametrize(
    ("projection", "settings", "named"),
    [
        ("p", {}, "dsn"),
        ("a:b", {"dsn": "x"}, "a:b"),
        ("p" * 64, {"dsn": "x"}, "ppp"),
        ("100%s", {"dsn": "x"}, "100%s"),
        ("p", {"dsn": "x", "schema": "100%"}, "schema"),
        ("p", {"dsn": "x", "timeout_s": "soon"}, "timeout_s"),
        ("p", {"dsn": "x", "timeout_s": -1}, "timeout_s"),
        ("p", {"dsn": "x", "timeout_s": "inf"}, "timeout_s"),
    ],
)
def test_wrong_settings_are_named(projection: str, settings: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named), open_sink(projection, settings):
        pass


def test_a_table_name_that_postgresql_would_cut_is_refused(dsn: str) -> None:
    with open_sink("p" * 60, {"dsn": dsn}) as sink, pytest.raises(SettingsError, match="longer than 63"):
        sink.prepare("generation")


def test_one_that_is_halted_while_it_prepares_holds_nobody_up(
    dsn: str, projection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    halted, goes_on, statement = threading.Event(), threading.Event(), PostgresSink._statement

    def halting(sink: PostgresSink, *given: Any) -> sql.Composed:
        if not halted.is_set():
            halted.set()
            goes_on.wait(60)
        return statement(sink, *given)

    def prepare() -> None:
        with open_sink(projection, {"dsn": dsn}) as sink:
            sink.prepare("g1")

    monkeypatch.setattr("outbox.database.HALTED_MS", 500)
    monkeypatch.setattr(PostgresSink, "_statement", halting)
    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(prepare)
        assert halted.wait(60)
        try:
            prepare()
        finally:
            goes_on.set()
        with pytest.raises(StoreUnavailable):
            frozen.result()


def test_rows_are_kept_in_the_schema_asked_for(dsn: str, projection: str, other: psycopg.Connection) -> None:
    schema = f"s_{projection}"
    try:
        with open_sink(projection, {"dsn": dsn, "schema": schema}) as sink:
            sink.prepare("g1")
            sink.apply("g1", [row("a")])
        table = sql.Identifier(schema, f"{projection}:g1")
        assert other.execute(sql.SQL("SELECT key FROM {}").format(table)).fetchall() == [("a",)]
    finally:
        other.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value
