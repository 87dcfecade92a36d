"""Dry runs: they say what comes true, and change nothing that anybody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outbox.database import connected
from outbox.errors import ProjectionError, SettingsError
from projectors import forecast, ledger, operations, verify
from projectors.building import Building, lock
from projectors.rebuild import TRIAL
from tests.integration.reading import Stage, assert_equal_to_model, put, settings_of, staged

STREAMS = 120


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    """120 streams of two events and two records each; nothing runs."""
    with staged(settings_of("local", database, address)) as stage:
        for n in range(STREAMS):
            stage.append(f"thing-{n}", put(a=n), put(b=n))
        yield stage


def dry(stage: Stage, **how: Any) -> dict[str, Any]:
    return operations.rebuild(stage.side, projector="rows", dry_run=True, **how)


def build(stage: Stage) -> dict[str, Any]:
    return operations.rebuild(stage.side, projector="rows")


def everything(stage: Stage) -> tuple[Any, ...]:
    """The store's tables and rows with the transactions that wrote them, its view, and the ledger."""
    run = stage.connection.execute
    tables = run("SELECT tablename FROM pg_tables WHERE schemaname = 'outbox_rows' ORDER BY 1").fetchall()
    rows = [run(f'SELECT xmin::text, t::text FROM outbox_rows."{t}" t'.encode()).fetchall() for (t,) in tables]
    view = run("SELECT definition FROM pg_views WHERE schemaname = 'outbox_rows'").fetchall()
    known = run("SELECT * FROM outbox.generation ORDER BY 1, 2").fetchall()
    return tables, rows, view, known, run("SELECT * FROM outbox.checkpoint ORDER BY 1, 2, 3, 4").fetchall()


def test_a_dry_run_says_what_the_rebuild_then_does(stage: Stage) -> None:
    for _ in range(2):
        build(stage)
    coming = dry(stage)
    before = {g.name for g in ledger.generations(stage.connection, "rows")}
    done = build(stage)
    gone = before - {g.name for g in ledger.generations(stage.connection, "rows")}
    assert (coming["generation"], coming["streams"], coming["records"]) == ("g3", STREAMS, 2 * STREAMS)
    assert (done["generation"], done["streams"], done["records"]) == ("g3", STREAMS, 2 * STREAMS)
    assert (coming["events"], coming["serving"], coming["resumes"]) == (2 * STREAMS, "g2", False)
    assert set(coming["drops"]) == gone == {"g1"}


def test_the_first_build_can_be_tried_too(stage: Stage) -> None:
    coming = dry(stage)
    assert (coming["generation"], coming["serving"], coming["drops"]) == ("g1", None, [])
    assert coming["seconds"] > 0


def test_dry_runs_change_nothing_that_is_read(stage: Stage) -> None:
    build(stage)
    before = everything(stage)
    dry(stage)
    dry(stage, check=False)
    operations.verify(stage.side, repair=True, dry_run=True)
    assert everything(stage) == before


def test_a_sample_is_scaled_up_to_all_streams(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dry(stage)
    monkeypatch.setattr(forecast, "SAMPLE_STREAMS", 30)
    part = dry(stage)
    assert (whole["sampled"], part["sampled"]) == (STREAMS, 30)
    assert (part["streams"], part["records"]) == (STREAMS, 2 * STREAMS), "each stream has two records"


def test_of_an_unfinished_build_the_rest_is_told(stage: Stage) -> None:
    ledger.begin_generation(stage.connection, "rows", "g1", stage.side.plan("rows").topics)
    names = sorted(f"thing-{n}" for n in range(STREAMS))
    ledger.note_progress(stage.connection, "rows", "g1", names[79], 160)
    coming = dry(stage)
    assert (coming["generation"], coming["resumes"], coming["streams"]) == ("g1", True, 40)


def test_an_unfinished_build_that_is_too_old_is_told_to_be_dropped(stage: Stage) -> None:
    ledger.begin_generation(stage.connection, "rows", "g1", stage.side.plan("rows").topics)
    stage.connection.execute("UPDATE outbox.generation SET changed_at = changed_at - interval '2 hours'")
    coming = dry(stage)
    assert (coming["generation"], coming["drops"]) == ("g2", ["g1"])


def test_what_a_killed_dry_run_left_is_dropped_by_the_next_build(stage: Stage) -> None:
    with stage.side.open_sink("rows") as sink:
        sink.prepare(TRIAL)
    build(stage)
    left = stage.connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'outbox_rows'").fetchall()
    assert left == [("rows:g1",)]


def test_a_dry_run_beside_a_build_is_told_so(stage: Stage) -> None:
    with connected(stage.side.write.dsn) as connection:
        lock(connection, "rows")
        with pytest.raises(Building, match="another process"):
            dry(stage)


def test_a_rollback_is_told_and_not_done(stage: Stage) -> None:
    with pytest.raises(ProjectionError, match="no earlier generation"):
        dry(stage, rollback=True)
    build(stage)
    build(stage)
    assert dry(stage, rollback=True) == {"projector": "rows", "generation": "g1"}
    assert stage.serving() == "g2"


def test_a_repair_is_told_and_not_done(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SETTLE_S", 0.2)
    build(stage)
    run = stage.connection.execute
    run("DELETE FROM outbox_rows.\"rows:g1\" WHERE key = 'thing-1#a'")
    run("UPDATE outbox_rows.\"rows:g1\" SET body = '{\"value\": -1}' WHERE key = 'thing-2#a'")
    run("UPDATE outbox_rows.\"rows:g1\" SET key = 'thing-3#x' WHERE key = 'thing-3#a'")
    before = everything(stage)
    (told,) = operations.verify(stage.side, repair=True, dry_run=True)
    assert everything(stage) == before
    assert (told["repaired"], told["would"]["writes"], told["would"]["removes"]) == (0, 3, 1)
    (done,) = operations.verify(stage.side, repair=True)
    assert (done["repaired"], done["differences"]) == (4, [])
    assert_equal_to_model(stage)


def test_a_dry_run_without_a_repair_is_refused(stage: Stage) -> None:
    build(stage)
    with pytest.raises(SettingsError, match="writes nothing"):
        operations.verify(stage.side, dry_run=True)
