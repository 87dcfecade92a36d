"""Verify and repair on a real store that somebody has tampered with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from outbox.database import connected
from outbox.log.append import append
from projectors import ledger, operations, verify
from projectors.wiring import Running
from tests.alongside import alongside
from tests.integration.reading import Stage, assert_equal_to_model, bad, put, settings_of, staged, until

TABLE = 'outbox_rows."rows:g1"'


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    """A store equal to 300 streams of which each has two rows; nothing runs any more."""
    with staged(settings_of("local", database, address)) as stage:
        with stage.running():
            for n in range(300):
                stage.append(f"thing-{n}", put(a=n), put(b=n))
            stage.wait_all()
        yield stage


def tamper(stage: Stage, statement: str) -> int:
    return stage.connection.execute(statement.format(table=TABLE).encode()).rowcount


def found(stage: Stage) -> dict[str, str]:
    return {d.key: d.kind for d in stage.verify().differences}


@pytest.fixture(autouse=True)
def short_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in flight where nothing runs."""
    monkeypatch.setattr(verify, "SETTLE_S", 0.2)


def test_an_untouched_store_is_clean(stage: Stage) -> None:
    report = stage.verify()
    assert (report.clean, report.records, report.as_dict()["missing"]) == (True, 600, 0)


def test_each_kind_of_difference_is_named(stage: Stage) -> None:
    tamper(stage, "DELETE FROM {table} WHERE key = 'thing-1#a'")
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": 0}}' WHERE key = 'thing-2#a'")
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": 0}}', version = 1 WHERE key = 'thing-3#b'")
    tamper(stage, "UPDATE {table} SET deleted = true WHERE key = 'thing-4#a'")
    tamper(stage, "INSERT INTO {table} SELECT 'thing-5#x', 'thing-5', 2, false, kind, body FROM {table} LIMIT 1")
    tamper(stage, "INSERT INTO {table} SELECT 'thing-none', 'thing-none', 7, false, kind, body FROM {table} LIMIT 1")
    tamper(stage, "INSERT INTO {table} SELECT 'odd-1', 'odd-1', 7, false, kind, body FROM {table} LIMIT 1")
    tamper(stage, "UPDATE {table} SET stream = 'thing-7' WHERE key = 'thing-6#a'")
    assert found(stage) == {
        "thing-1#a": "missing",
        "thing-2#a": "different",
        "thing-3#b": "stale",
        "thing-4#a": "missing",
        "thing-5#x": "extra",
        "thing-none": "extra",
        "odd-1": "extra",
        "thing-6#a": "different",
    }


def test_a_record_of_a_category_that_is_not_followed_is_extra(stage: Stage) -> None:
    stage.append("other-1", put(a=1))
    tamper(
        stage,
        "INSERT INTO {table} SELECT 'other-1#a', 'other-1', 1, false, kind, '{{\"value\":1}}' FROM {table} LIMIT 1",
    )
    assert found(stage) == {"other-1#a": "extra"}


def test_repair_puts_right_just_what_differs(stage: Stage) -> None:
    tamper(stage, "DELETE FROM {table} WHERE key LIKE 'thing-1_#a'")
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": 0}}' WHERE key LIKE 'thing-2_#a'")
    tamper(stage, "INSERT INTO {table} SELECT 'thing-5#x', 'thing-5', 2, false, kind, body FROM {table} LIMIT 1")
    tamper(stage, "UPDATE {table} SET stream = 'thing-7' WHERE key = 'thing-6#a'")
    before = dict(stage.connection.execute(f"SELECT key, xmin::text FROM {TABLE}".encode()).fetchall())
    report = stage.verify()
    assert report.as_dict() == {"records": 600, "missing": 10, "stale": 0, "extra": 1, "different": 11, "parked": 0}
    assert stage.verifying(lambda verifier: verifier.repair(report)) == 22
    assert stage.verify().clean
    assert_equal_to_model(stage)
    after = dict(stage.connection.execute(f"SELECT key, xmin::text FROM {TABLE}".encode()).fetchall())
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} == {
        d.key for d in report.differences
    }


def test_a_repaired_record_follows_its_stream_again(stage: Stage) -> None:
    tamper(stage, "UPDATE {table} SET body = '{{\"value\": 0}}'")
    report = stage.verify()
    assert report.count("different") == 598, "all but the two rows of thing-0, whose value is 0"
    stage.verifying(lambda verifier: verifier.repair(report))
    with stage.running():
        for n in range(0, 300, 3):
            stage.append(f"thing-{n}", put(a=-n, b=None))
        stage.wait_all()
    assert_equal_to_model(stage)


def test_parked_streams_are_left_out(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(c=1), bad(), put(d=1))
        stage.wait_all()
    tamper(stage, "DELETE FROM {table} WHERE key = 'thing-1#a'")
    report = stage.verify()
    assert (report.clean, report.parked, report.records) == (True, ["thing-1"], 598)


def test_a_store_is_clean_while_writers_go_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SETTLE_S", 30.0)

    def write(seed: int, ended: threading.Event) -> None:
        with connected(stage.side.write.dsn) as connection:
            n = seed
            while not ended.wait(0.002):
                n += 1
                # One stream never comes to rest, and keys come and go.
                append(connection, "thing-hot", put(a=n, **{f"k{n % 5}": n if n % 2 else None}))
                append(connection, f"thing-{n % 300}", put(b=n))

    with stage.running(), alongside(partial(write, 1_000), partial(write, 900_000)):
        reports = [stage.verify() for _ in range(5)]
        tamper(stage, "UPDATE {table} SET body = '{{\"value\": 0}}' WHERE key = 'thing-299#a'")
        tampered = stage.verify()
    assert [r.differences for r in reports] == [[]] * 5
    assert [(d.key, d.kind) for d in tampered.differences] == [("thing-299#a", "different")]


def test_a_projector_that_is_behind_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SETTLE_S", 30.0)
    stage.append("thing-1", put(a="late"))
    reports: list[verify.Report] = []
    verifying = threading.Thread(target=lambda: reports.append(stage.verify()))
    with Running(stage.side, [], relay=True):
        verifying.start()
        with stage.running(relay=False):
            verifying.join(timeout=20.0)
    assert [r.clean for r in reports] == [True]


def test_what_no_projector_applies_is_named_once_the_wait_is_over(stage: Stage) -> None:
    stage.append("thing-1", put(a="late", c="new"))
    assert found(stage) == {"thing-1#a": "stale", "thing-1#c": "missing"}


def test_differences_beyond_the_bound_are_counted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "NAMED_MAX", 10)
    tamper(stage, "TRUNCATE {table}")
    report = stage.verify()
    assert (len(report.differences), report.count("missing")) == (10, 600)


def test_a_retry_during_verify_of_a_parked_stream_is_no_difference(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SETTLE_S", 30.0)
    with stage.running():
        stage.append("thing-1", put(c=1), bad(), put(d=1))
        stage.wait_all()
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        reports = [stage.verify() for _ in range(3)]
        until(lambda: stage.letters() == [], "it is applied")
        reports.append(stage.verify())
    assert all(r.clean for r in reports)


def test_a_generation_that_is_replaced_meanwhile_is_not_blamed_for_what_it_no_longer_gets(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = verify.Verifier._let_settle

    def meanwhile(verifier: verify.Verifier) -> None:
        monkeypatch.setattr(verify.Verifier, "_let_settle", settle)
        assert operations.rebuild(stage.side, projector="rows", check=False)["generation"] == "g2"
        with stage.running():
            stage.wait_all()
            settle(verifier)

    stage.append("thing-1", put(a="new"))  # which nobody has applied when verify looks first
    monkeypatch.setattr(verify.Verifier, "_let_settle", meanwhile)
    (report,) = operations.verify(stage.side)
    assert (report["generation"], report["differences"]) == ("g2", [])
