"""The quick verification: it reads the slices that differ, finds what it promises, and says what it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from outbox.database import connected
from outbox.log.append import append
from projectors import operations, verify, verify_suspects
from projectors.marks import SLICES, mark_of, slice_of
from projectors.record import Change, Row, Stored
from projectors.resilience import Wrapped
from projectors.sinks.postgres import PostgresSink
from projectors.verify import Report
from tests.alongside import alongside
from tests.integration.reading import Stage, assert_equal_to_model, bad, put, settings_of, staged

TABLE = 'outbox_rows."rows:g1"'
STREAMS = 400


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    """A store equal to 400 streams of two rows each; nothing runs."""
    with staged(settings_of("local", database, address)) as stage:
        for n in range(STREAMS):
            stage.append(f"thing-{n}", put(a=n, b="old"), put(b=n))
        operations.rebuild(stage.side, projector="rows", check=False)
        yield stage


@pytest.fixture(autouse=True)
def short_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in flight where nothing runs."""
    monkeypatch.setattr(verify, "SETTLE_S", 0.2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the records that a verification reads of the store."""
    seen: list[str] = []
    scan, scan_slices = PostgresSink.scan, PostgresSink.scan_slices

    def counting(found: Iterator[Stored]) -> Iterator[Stored]:
        for stored in found:
            seen.append(stored.key)
            yield stored

    def scanning(sink: PostgresSink, *args: Any) -> Iterator[Stored]:
        return counting(scan(sink, *args))

    def scanning_slices(sink: PostgresSink, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        return counting(scan_slices(sink, generation, slices))

    monkeypatch.setattr(PostgresSink, "scan", scanning)
    monkeypatch.setattr(PostgresSink, "scan_slices", scanning_slices)
    return seen


def tamper(stage: Stage, statement: str) -> None:
    assert stage.connection.execute(statement.format(table=TABLE).encode()).rowcount > 0


def quick(stage: Stage) -> Report:
    return stage.verifying(lambda verifier: verifier.verify(quick=True))


def found(report: Report) -> dict[str, str]:
    return {d.key: d.kind for d in report.differences}


MISSING = "DELETE FROM {table} WHERE key = 'thing-7#a'"
STALE = """UPDATE {table} SET version = 1, body = '{{"value": "old"}}', slice = o.slice, mark = o.mark
FROM (VALUES (%s::smallint, %s::bigint)) o (slice, mark) WHERE key = 'thing-8#b'"""
EXTRA = """INSERT INTO {table} SELECT 'thing-9#x', 'thing-9', 2, false, kind, body, 77, 5 FROM {table}
WHERE key = 'thing-9#a'"""


def make_stale(stage: Stage) -> None:
    """The row as a projector wrote it at version 1: an older copy of the store brought it back, mark and all."""
    mark = mark_of(Change("thing-8#b", "thing-8", 1, Row("thing-8#b", {"value": "old"})))
    assert mark is not None
    stage.connection.execute(STALE.format(table=TABLE).encode(), [mark.slice, mark.mark])


def test_an_untouched_store_is_clean_and_nothing_is_read_of_it(stage: Stage, read: list[str]) -> None:
    report = quick(stage)
    assert (report.clean, report.records, report.slices, report.why_full) == (True, 2 * STREAMS, 0, "")
    assert read == []


def test_a_missing_record_is_found_by_reading_its_slice(stage: Stage, read: list[str]) -> None:
    tamper(stage, MISSING)
    report = quick(stage)
    assert (found(report), report.slices) == ({"thing-7#a": "missing"}, 1)
    assert {slice_of(key) for key in read} <= {slice_of("thing-7#a")}


def test_a_stale_record_is_found_by_reading_its_slice(stage: Stage, read: list[str]) -> None:
    make_stale(stage)
    report = quick(stage)
    assert (found(report), report.slices) == ({"thing-8#b": "stale"}, 1)
    assert {slice_of(key) for key in read} == {slice_of("thing-8#b")}


def test_an_extra_record_is_found_by_reading_its_slice(stage: Stage) -> None:
    tamper(stage, EXTRA)
    report = quick(stage)
    assert (found(report), report.slices) == ({"thing-9#x": "extra"}, 1)


def test_a_lost_write_of_a_whole_batch_is_found(stage: Stage) -> None:
    tamper(stage, "DELETE FROM {table} WHERE key LIKE 'thing-1_#_'")
    assert set(found(quick(stage))) == {f"thing-1{n}#{part}" for n in range(10) for part in "ab"}


def test_content_changed_behind_its_mark_is_found_by_the_full_verification_only(stage: Stage) -> None:
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": -1}}' WHERE key = 'thing-3#a'")
    assert quick(stage).clean
    assert found(stage.verify()) == {"thing-3#a": "different"}


def test_what_is_read_is_compared_by_what_it_really_holds(stage: Stage) -> None:
    keys = [f"thing-{n}#{part}" for n in range(STREAMS) for part in "ab"]
    gone, changed = next((k, j) for i, k in enumerate(keys) for j in keys[:i] if slice_of(j) == slice_of(k))
    tamper(stage, f"DELETE FROM {{table}} WHERE key = '{gone}'")
    tamper(stage, f"UPDATE {{table}} SET body = '{{{{\"value\": -1}}}}' WHERE key = '{changed}'")
    report = quick(stage)
    assert (found(report), report.slices) == ({gone: "missing", changed: "different"}, 1)


def test_repair_after_a_quick_look_writes_what_differs(stage: Stage) -> None:
    tamper(stage, MISSING)
    tamper(stage, EXTRA)
    make_stale(stage)
    (report,) = operations.verify(stage.side, quick=True, repair=True)
    assert (report["repaired"], report["differences"], report["slices"]) == (3, [], 0)
    assert_equal_to_model(stage)
    assert stage.verify().clean


def test_records_without_a_mark_are_compared_in_full(stage: Stage) -> None:
    tamper(stage, "UPDATE {table} SET mark = NULL, slice = NULL WHERE key = 'thing-3#b'")
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": -1}}' WHERE key = 'thing-3#a'")
    report = quick(stage)
    assert (found(report), report.slices) == ({"thing-3#a": "different"}, None)
    assert report.why_full == "1 records carry no mark"


def test_a_table_made_before_there_were_marks_is_compared_in_full(stage: Stage) -> None:
    stage.connection.execute(f"ALTER TABLE {TABLE} DROP COLUMN slice, DROP COLUMN mark".encode())
    tamper(stage, "DELETE FROM {table} WHERE key = 'thing-3#a'")
    report = quick(stage)
    assert found(report) == {"thing-3#a": "missing"}
    assert report.why_full == f"{2 * STREAMS - 1} records carry no mark"
    stage.verifying(lambda verifier: verifier.repair(report))
    assert_equal_to_model(stage)


def test_a_sink_without_sums_is_compared_in_full(stage: Stage) -> None:
    tamper(stage, MISSING)
    plan, registry = stage.side.plan("rows"), stage.side.write.registry
    with stage.side.open_sink("rows") as sink:
        report = verify.Verifier(stage.connection, plan, Wrapped(sink), "g1", registry).verify(quick=True)
    assert (found(report), report.why_full) == ({"thing-7#a": "missing"}, "its sink keeps no sums")


def test_where_many_slices_differ_the_store_is_read_once(stage: Stage) -> None:
    tamper(stage, "DELETE FROM {table} WHERE key LIKE '%#a'")
    report = quick(stage)
    gone = {f"thing-{n}#a" for n in range(STREAMS)}
    assert set(found(report)) == gone
    slices = len({slice_of(key) for key in gone})
    assert slices > verify_suspects.SLICES_MAX
    assert (report.slices, report.why_full) == (None, f"{slices} of {SLICES} slices differ")


def test_parked_streams_are_left_out_and_cost_no_reading(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(c=1), bad(), put(d=1))
        stage.wait_all()
    report = quick(stage)
    assert (report.clean, report.parked, report.slices) == (True, ["thing-1"], 0)
    tamper(stage, "DELETE FROM {table} WHERE key = 'thing-1#a'")
    report = quick(stage)
    assert (report.clean, report.slices, report.records) == (True, 1, 2 * STREAMS - 2)


def test_a_store_is_clean_to_a_quick_look_while_writers_go_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SETTLE_S", 30.0)

    def write(ended: threading.Event) -> None:
        with connected(stage.side.write.dsn) as connection:
            n = 1_000
            while not ended.wait(0.005):
                n += 1
                append(connection, "thing-hot", put(a=n, **{f"k{n % 5}": n if n % 2 else None}))
                append(connection, f"thing-{n % 300}", put(b=n))

    with stage.running(), alongside(write):
        reports = [quick(stage) for _ in range(4)]
        tamper(stage, "DELETE FROM {table} WHERE key = 'thing-399#a'")
        tampered = quick(stage)
    assert [found(r) for r in reports] == [{}] * 4
    assert found(tampered) == {"thing-399#a": "missing"}
