"""A projector whose ``store`` was changed: nothing goes on behind checkpoints that are not of that store, a rebuild moves
it there without a hole, and what is left in the store before is neither mixed up nor forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from outbox.database import connected
from outbox.errors import ProjectionError, StoreChanged
from outbox.settings import Projecting
from projectors import ledger, loading, operations, placement, rebuild
from projectors.reconcile import reconcile
from projectors.sinks.memory import Space, space_of
from projectors.wiring import Running
from tests.integration.reading import Parts, Stage, assert_equal_to_model, put, settings_of, staged, until

STREAMS = 30


@pytest.fixture
def stages(database: str, address: Callable[[str], str]) -> Iterator[tuple[Stage, Stage]]:
    """The same projector under two settings: in PostgreSQL, and in memory. Nothing is built yet."""
    settings, parts = settings_of("local", database, address), Parts()
    settings = settings.model_copy(update={"stores": {"memory": {"space": settings.prefix}}})
    moved = {"rows": Projecting(projection="parts", store="memory", batch=100)}
    with ExitStack() as stack:
        before = stack.enter_context(staged(settings, parts))
        after = stack.enter_context(staged(settings.model_copy(update={"projectors": moved}), parts))
        for n in range(STREAMS):
            before.append(f"thing-{n}", put(a=n, gone=1), put(gone=None))
        yield before, after


def in_memory(stage: Stage) -> Space:
    return space_of("rows", stage.side.settings.stores["memory"])


def tables(stage: Stage) -> set[str]:
    found = stage.connection.execute("SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('outbox_rows')")
    return {name for (name,) in found if name in {"rows", "rows:g1", "rows:g2", "rows:g3"}}


def known(stage: Stage) -> dict[str, tuple[str, str | None]]:
    return {g.name: (g.state, g.store) for g in ledger.generations(stage.connection, "rows")}


def rebuilt(stage: Stage, **how: Any) -> dict[str, Any]:
    return operations.rebuild(stage.side, projector="rows", **how)


@contextmanager
def ended_by(running: Running) -> Iterator[None]:
    """Past the moment at which the store that was changed has ended the projector."""
    yield
    until(lambda: running._failures, "the projector ends")
    with pytest.raises(StoreChanged):
        running.check()


def started(stage: Stage) -> Running:
    return Running(stage.side, relay=False)


def built(stage: Stage) -> None:
    with stage.running():
        stage.wait_all()


def test_a_projector_does_not_go_on_in_another_store(stages: tuple[Stage, Stage]) -> None:
    """It wrote only what was new there, and everybody saw a store that lacked all the rest."""
    before, after = stages
    built(before)
    before.append("thing-new", put(a=1))
    at = ledger.checkpoints(before.connection, "rows", "g1")
    with started(after) as running, ended_by(running):
        pass
    with pytest.raises(
        StoreChanged,
        match=r"rows: its records \(g1\) are in postgres, and its settings name memory: either set projectors.rows.store"
        r" to 'postgres', or run `outbox rebuild rows`",
    ):
        running.check()
    assert in_memory(after).generations == {}
    assert ledger.checkpoints(before.connection, "rows", "g1") == at
    built(before)  # the setting is put back
    assert_equal_to_model(before)


def test_a_rebuild_moves_a_projector_to_the_store_that_is_named_now(stages: tuple[Stage, Stage]) -> None:
    """Who has the former setting feeds the former store until the switch, and ends then."""
    before, after = stages
    with Running(before.side) as old:
        until(lambda: ledger.serving(before.connection, "rows"), "rows serves")
        with ended_by(old):
            coming = rebuilt(after, dry_run=True)
            assert (coming["serving"], coming["serving_in"], coming["drops"]) == ("g1", "postgres", [])
            before.append("thing-1", put(b=1))
            done = rebuilt(after)
    assert done["elsewhere"] == [{"generation": "g1", "store": "postgres", "why": ""}]
    assert known(after) == {"g1": ("retired", "postgres"), "g2": ("serving", "memory")}
    assert in_memory(after).serving == "g2"
    with after.running():
        after.append("thing-1", put(c=1))
        after.wait_all()
    assert_equal_to_model(after)
    assert after.verify().clean


def test_the_way_back_leads_through_the_former_setting(stages: tuple[Stage, Stage]) -> None:
    before, after = stages
    built(before)
    rebuilt(after)
    with after.running():
        after.append("thing-1", put(b=1))
        after.wait_all()
    for how in ({"rollback": True}, {"rollback": True, "dry_run": True}):
        with pytest.raises(StoreChanged, match=r"\(g1\) is in postgres.*set projectors.rows.store to 'postgres' to"):
            rebuilt(after, **how)
    assert known(after)["g2"] == ("serving", "memory")
    assert rebuilt(before, rollback=True) == {"projector": "rows", "generation": "g1"}
    with started(after) as running, ended_by(running):
        pass
    built(before)
    assert_equal_to_model(before)


def test_what_is_left_in_the_former_store_is_dropped_there(stages: tuple[Stage, Stage]) -> None:
    """The sink of the new store drops nothing under that name, and the ledger knew of it no more."""
    before, after = stages
    built(before)
    assert tables(before) == {"rows", "rows:g1"}
    rebuilt(after)
    assert rebuilt(after, dry_run=True)["drops"] == ["g1"]
    assert tables(before) == {"rows", "rows:g1"}, "it is kept for a rollback"
    assert rebuilt(after)["elsewhere"] == []
    assert tables(before) == set()
    assert known(after) == {"g2": ("retired", "memory"), "g3": ("serving", "memory")}


def test_what_cannot_be_dropped_is_kept_and_said_until_it_can(stages: tuple[Stage, Stage]) -> None:
    before, after = stages
    built(before)
    rebuilt(after)
    nowhere = {**after.side.settings.stores, "postgres": {"dsn": "postgresql://127.0.0.1:1/nowhere"}}
    with staged(after.side.settings.model_copy(update={"stores": nowhere}), after.projection) as cut_off:
        (left,) = rebuilt(cut_off)["elsewhere"]
    assert (left["generation"], left["store"]) == ("g1", "postgres")
    assert "127.0.0.1" in left["why"]
    assert known(after)["g1"] == ("retired", "postgres")
    assert rebuilt(after)["elsewhere"] == []
    assert tables(before) == set()


def test_a_build_is_not_gone_on_with_in_another_store(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would load what the former store has not got yet, and nothing else."""
    before, after = stages
    with monkeypatch.context() as patched:
        patched.setattr(loading, "LOAD_BATCH", 10)
        patched.setattr(ledger, "note_progress", cut_off_after(2, ledger.note_progress))
        with pytest.raises(ProjectionError, match="cut off"):
            rebuilt(before)
    assert known(before) == {"g1": ("building", "postgres")}
    built(after)
    assert known(after) == {"g2": ("serving", "memory")}
    assert_equal_to_model(after)
    assert tables(before) == set()


def cut_off_after(times: int, act: Callable[..., Any]) -> Callable[..., Any]:
    calls = list[None]()

    def acted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) > times:
            raise ProjectionError("cut off")
        return act(*args, **kwargs)

    return acted


def test_a_build_cut_off_between_alias_and_row_changes_nothing_for_the_former_store(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = stages
    built(before)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "switch_generation", cut_off_after(0, ledger.switch_generation))
        with pytest.raises(ProjectionError, match="cut off"):
            rebuilt(after)
    assert in_memory(after).serving == "g2"
    with before.running():
        before.append("thing-1", put(b=1))
        before.wait_all()
    assert_equal_to_model(before)
    assert rebuilt(after)["generation"] == "g2"
    assert_equal_to_model(after)


def test_a_build_elsewhere_that_is_given_up_is_dropped_there(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store has no generation that serves to which readers could be led back."""
    before, after = stages
    built(before)
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "switch_generation", cut_off_after(0, ledger.switch_generation))
        with pytest.raises(ProjectionError, match="cut off"):
            rebuilt(after)
    assert rebuilt(before, dry_run=True)["drops"] == ["g2"]
    assert rebuilt(before)["elsewhere"] == []
    assert known(before) == {"g1": ("retired", "postgres"), "g3": ("serving", "postgres")}
    assert (in_memory(after).generations, in_memory(after).serving) == ({}, None)


def test_a_projector_that_waited_for_a_build_elsewhere_leads_no_alias(stages: tuple[Stage, Stage]) -> None:
    before, after = stages
    built(before)
    waited = list[BaseException]()

    def wait() -> None:
        try:
            rebuild.first_build(before.side.plan("rows"), before.side.stations("rows"), threading.Event())
        except BaseException as error:  # handed to the test
            waited.append(error)

    waiting = threading.Thread(target=wait)
    with connected(after.side.write.dsn) as connection:
        rebuild.lock(connection, "rows")
        ledger.begin_generation(connection, "rows", "g2", after.side.plan("rows").topics, "memory")
        waiting.start()
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (%s)"
        here = "SELECT oid FROM pg_database WHERE datname = current_database()"
        until(lambda: before.connection.execute(waits.replace("%s", here)).fetchone() is not None, "it waits")
        ledger.switch_generation(connection, "rows", "g2")
    waiting.join()
    assert [type(error) for error in waited] == [StoreChanged]


def test_generations_of_an_earlier_release_are_where_the_first_session_is(stages: tuple[Stage, Stage]) -> None:
    before, after = stages
    built(before)
    before.connection.execute("UPDATE outbox.generation SET store = NULL")
    assert operations.status(after.side)["projectors"][0]["changed"] == ""
    built(before)
    assert known(before) == {"g1": ("serving", "postgres")}
    with started(after) as running, ended_by(running):
        pass


def test_of_two_members_with_different_settings_the_first_is_believed(stages: tuple[Stage, Stage]) -> None:
    before, _ = stages
    built(before)
    before.connection.execute("UPDATE outbox.generation SET store = NULL")
    placement.check(before.connection, "rows", "g1", "memory")
    with pytest.raises(StoreChanged, match="are in memory, and its settings name postgres"):
        placement.check(before.connection, "rows", "g1", "postgres")


def test_a_reconcile_builds_in_the_store_that_is_named_and_drops_where_the_old_is(
    stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = stages
    built(before)
    with monkeypatch.context() as patched:
        patched.setattr(loading, "LOAD_BATCH", 10)
        patched.setattr(ledger, "note_progress", cut_off_after(1, ledger.note_progress))
        with pytest.raises(ProjectionError, match="cut off"):
            rebuilt(before)
    assert tables(before) == {"rows", "rows:g1", "rows:g2"}
    (done,) = reconcile(after.side, force=True).built
    assert (done.projector, done.elsewhere) == ("rows", [])
    assert known(after) == {done.generation: ("serving", "memory")}
    assert tables(before) == set()
    built(after)
    assert_equal_to_model(after)


def test_a_reconcile_ends_though_the_former_store_is_gone(stages: tuple[Stage, Stage]) -> None:
    before, after = stages
    built(before)
    nowhere = {**after.side.settings.stores, "postgres": {"dsn": "postgresql://127.0.0.1:1/nowhere"}}
    with staged(after.side.settings.model_copy(update={"stores": nowhere}), after.projection) as cut_off:
        (done,) = reconcile(cut_off.side, force=True).built
        assert [(one.generation, one.store) for one in done.elsewhere] == [("g1", "postgres")]
        built(cut_off)
        assert_equal_to_model(cut_off)
