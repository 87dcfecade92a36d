"""Which generation serves after a build, which is kept for a way back, and who may build at a time."""

from __future__ import annotations

import threading

import pytest

from outbox.database import connected
from outbox.errors import ProjectionError, VerificationFailed
from projectors import ledger, loading, operations, rebuild, verify
from projectors.building import Building, lock
from projectors.record import Change, Row
from tests.integration.generations import rebuilt, stage, states, tables  # noqa: F401
from tests.integration.reading import Stage, assert_equal_to_model, put, until


def test_of_two_at_once_one_is_told_that_the_other_builds(stage: Stage) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(_generation: str) -> None:
        entered.set()
        assert go_on.wait(30.0)

    plan, stations = stage.side.plan("rows"), stage.side.stations("rows")
    first = threading.Thread(target=lambda: rebuild.rebuild(plan, stations, verify=wait))
    first.start()
    try:
        assert entered.wait(30.0)
        with pytest.raises(Building, match="another process"):
            rebuilt(stage)
        with pytest.raises(Building, match="another process"):
            operations.rebuild(stage.side, projector="rows", rollback=True)
    finally:
        go_on.set()
        first.join()
    assert states(stage) == {"g1": "serving"}


def test_rollback_serves_the_former_generation_and_forward_the_later_again(stage: Stage) -> None:
    with stage.running():
        stage.wait_all()
        assert rebuilt(stage) == "g2"
        for n, expected in enumerate(["g1", "g2", "g1"]):
            stage.append("thing-1", put(b=n))
            done = operations.rebuild(stage.side, projector="rows", rollback=True)
            assert (done["generation"], stage.serving()) == (expected, expected)
            stage.append("thing-2", put(b=n))
            stage.wait_all()
            assert_equal_to_model(stage)
            view = stage.connection.execute("SELECT count(*) FROM outbox_rows.rows").fetchone()[0]
            assert view == len(stage.model())


def test_without_an_earlier_generation_there_is_no_way_back(stage: Stage) -> None:
    rebuilt(stage)
    with pytest.raises(ProjectionError, match="no earlier generation"):
        operations.rebuild(stage.side, projector="rows", rollback=True)


def test_only_the_generation_that_served_last_is_kept(stage: Stage) -> None:
    assert [rebuilt(stage) for _ in range(4)] == ["g1", "g2", "g3", "g4"]
    assert states(stage) == {"g3": "retired", "g4": "serving"}
    operations.rebuild(stage.side, projector="rows", rollback=True)
    assert rebuilt(stage) == "g5"
    assert states(stage) == {"g3": "retired", "g5": "serving"}
    assert tables(stage) == {"rows:g3", "rows:g5"}


def test_the_generation_that_served_last_is_kept_though_the_databases_clock_went_back(stage: Stage) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        assert operations.rebuild(stage.side, projector="rows")["generation"] == "g2"
        stage.connection.execute("UPDATE outbox.generation SET changed_at = changed_at + interval '1 hour'")
        assert operations.rebuild(stage.side, projector="rows")["generation"] == "g3"
        assert [g.name for g in ledger.generations(stage.connection, "rows")] == ["g2", "g3"]


def test_a_generation_that_differs_does_not_serve_and_the_next_build_begins_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rebuilt(stage) == "g1"
    apply = loading.Load._write

    def losing(load: loading.Load, batch: list, *rest: object) -> None:
        apply(load, [c for c in batch if c.key != "thing-7#a"], *rest)

    monkeypatch.setattr(loading.Load, "_write", losing)
    monkeypatch.setattr(verify, "SETTLE_S", 0.2)  # no relay runs: nothing is in flight
    with pytest.raises(VerificationFailed, match="1 records of g2 differ"):
        rebuilt(stage)
    assert (states(stage), tables(stage)) == ({"g1": "serving"}, {"rows:g1"})
    monkeypatch.undo()
    assert rebuilt(stage) == "g2"
    assert_equal_to_model(stage)


def test_records_of_another_log_under_the_same_name_are_neither_mixed_with_ours_nor_touched(stage: Stage) -> None:
    theirs = [
        Change("thing-7#a", "thing-7", 99, Row("thing-7#a", {"value": "of another log"})),
        Change("other-1#a", "other-1", 1, Row("other-1#a", {"value": "likewise"})),
    ]
    with stage.side.open_sink("rows") as sink:
        for name in ("g1", "g2"):
            sink.prepare(name)
            sink.apply(name, theirs)
    assert rebuilt(stage) == "g3"
    assert_equal_to_model(stage)
    assert states(stage) == {"g3": "serving"}
    with stage.side.open_sink("rows") as sink:
        assert {stored.key for stored in sink.scan("g1")} == {"thing-7#a", "other-1#a"}


def test_the_lock_of_a_build_that_just_ended_is_waited_for(stage: Stage) -> None:
    """The server process of a connection that was closed ends a moment later: until then it holds its locks."""
    with connected(stage.side.write.dsn) as earlier:
        lock(earlier, "rows")
        going = threading.Timer(0.5, earlier.close)
        going.start()
        assert rebuilt(stage, check=False) == "g1"
        going.join()


def test_a_build_that_ends_while_a_projector_waits_for_its_lock_keeps_the_alias(stage: Stage) -> None:
    """The projector would lead it back to what served when it began to wait, which is dropped by and by."""
    rebuilt(stage, check=False)
    plan, stations = stage.side.plan("rows"), stage.side.stations("rows")
    led: list[str] = []
    with connected(stage.side.write.dsn) as building, stage.side.open_sink("rows") as sink:
        lock(building, "rows")
        sink.prepare("g2")
        ledger.begin_generation(building, "rows", "g2", plan.topics)
        starting = threading.Thread(target=lambda: led.append(rebuild.first_build(plan, stations, threading.Event())))
        starting.start()
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (%s)"
        here = "SELECT oid FROM pg_database WHERE datname = current_database()"
        until(lambda: stage.connection.execute(waits.replace("%s", here)).fetchone() is not None, "it waits")
        sink.switch("g2")
        ledger.switch_generation(building, "rows", "g2")
    starting.join()
    assert led == ["g2"]
    (shown,) = stage.connection.execute("SELECT pg_get_viewdef('outbox_rows.rows'::regclass)").fetchone()
    assert "rows:g2" in shown
