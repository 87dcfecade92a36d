"""Rebuild on real PostgreSQL and brokers: readers notice nothing, crashes cost nothing, and there is a way back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox.database import connected
from outbox.errors import ProjectionError, VerificationFailed
from outbox.log.append import append
from projectors import ledger, loading, operations, rebuild, verify
from projectors.building import Building, lock
from projectors.record import Change, Row
from projectors.resilience import Wrapped
from projectors.session import Session
from tests.integration import asking
from tests.integration.reading import (
    Stage,
    assert_equal_to_model,
    bad,
    put,
    settings_of,
    staged,
    until,
)
from tests.integration.rebuilding import POINTS

every_broker = pytest.mark.parametrize("broker", ["local", "kafka-confluent", "kafka-python"])
CHILD_S = 60.0
WRITE_EVERY_S = 0.002
"""Writers that take all of the machine would only make the tests slow."""


@pytest.fixture
def broker() -> str:
    return "local"


@pytest.fixture
def stage(broker: str, database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    with staged(settings_of(broker, database, address)) as stage:
        for n in range(120):
            stage.append(f"thing-{n}", put(a=n, gone=1), put(gone=None))
        yield stage


def rebuilt(stage: Stage, check: bool = True) -> str:
    return operations.rebuild(stage.side, projector="rows", check=check)["generation"]


def states(stage: Stage) -> dict[str, str]:
    return {g.name: g.state for g in ledger.generations(stage.connection, "rows")}


def tables(stage: Stage) -> set[str]:
    found = stage.connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'outbox_rows'").fetchall()
    return {name for (name,) in found}


@contextmanager
def writing(stage: Stage) -> Iterator[None]:
    """Two writers that go on while the block does: changes, new streams, and keys that come and go.

    They leave half of the streams alone, so that what a load loses is not brought by the catch-up.
    """
    ended = threading.Event()

    def write(seed: int) -> None:
        with connected(stage.side.write.dsn) as connection:
            n = seed
            while not ended.wait(WRITE_EVERY_S):
                n += 1
                append(
                    connection,
                    f"thing-{n % 60}" if n % 2 else f"thing-new{n % 50}",
                    put(a=n, **{f"k{n % 3}": n if n % 2 else None}),
                )

    writers = [threading.Thread(target=write, args=(seed,)) for seed in (1_000, 500_000)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        ended.set()
        for writer in writers:
            writer.join()


@every_broker
def test_readers_of_the_serving_generation_never_find_it_empty(stage: Stage) -> None:
    ended, answers = threading.Event(), list[int]()

    def read() -> None:
        with connected(stage.side.write.dsn) as connection, stage.side.open_sink("rows") as sink:
            while not ended.is_set():
                serving = ledger.serving(connection, "rows")
                answers.append(len(list(sink.scan(serving, [f"thing-{n}#a" for n in range(120)]))))
                seen = connection.execute("SELECT count(*) FROM outbox_rows.rows WHERE key ~ '^thing-[0-9]+#a$'")
                answers.append(min(seen.fetchone()[0], 120))

    reader = threading.Thread(target=read)
    with stage.running():
        stage.wait_all()
        reader.start()
        try:
            with writing(stage):
                made = [rebuilt(stage) for _ in range(2)]
            stage.wait_all()
        finally:
            ended.set()
            reader.join()
        assert made == ["g2", "g3"]
        assert_equal_to_model(stage)
        assert stage.verify().clean
    assert len(answers) > 20
    assert set(answers) == {120}


def test_a_build_catches_up_in_larger_batches_than_it_will_serve_with(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or writers that are faster than the store keep it from ever serving."""
    load, step, taken = loading.Load.run, Session.step, list[int]()

    def meanwhile(running: loading.Load, stop: threading.Event) -> tuple[int, int]:
        loaded = load(running, stop)
        stage.append("thing-busy", *(put(a=n) for n in range(400)))
        stage.wait_all()
        return loaded

    def counted(session: Session) -> int:
        taken.append(step(session))
        return taken[-1]

    with stage.running():
        stage.wait_all()
        monkeypatch.setattr(loading.Load, "run", meanwhile)
        monkeypatch.setattr(Session, "step", counted)
        assert rebuilt(stage) == "g2"
    assert max(taken) > stage.side.stations("rows").resilience.batch
    assert_equal_to_model(stage)


def test_a_load_makes_vectors_of_the_next_texts_while_the_store_takes_those_before(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOAD_BATCH", 1)
    made, met = threading.Semaphore(0), list[bool]()

    class Waiting(Wrapped):
        """Its first write goes on once two batches have been made vectors of."""

        def apply(self, generation: str, changes: Sequence[Change]) -> None:
            if not met:
                met.append(all(made.acquire(timeout=10) for _ in range(2)))
            super().apply(generation, changes)

    with asking.world(asking.settings_of(database, tmp_path, {"vectors": "memory"})) as built:
        built.populate()
        plan, stations = built.side.plan("vectors"), built.side.stations("vectors")

        def embed(texts: Sequence[str]) -> Any:
            made.release()
            return plan.embed(texts)

        @contextmanager
        def sink() -> Iterator[Wrapped]:
            with stations.sink() as opened:
                yield Waiting(opened)

        done = rebuild.rebuild(replace(plan, embed=embed), replace(stations, sink=sink))
        assert done.records == len(asking.ANIMALS)
        assert met == [True]
        with stations.sink() as opened:
            assert {one.key for one in opened.scan(done.generation)} == set(asking.ANIMALS)


@every_broker
def test_a_generation_built_without_any_projector_equals_the_model(stage: Stage) -> None:
    assert rebuilt(stage) == "g1"
    assert_equal_to_model(stage)


@pytest.mark.parametrize("point", POINTS)
def test_a_rebuild_killed_and_run_again_equals_the_model(stage: Stage, point: str) -> None:
    with stage.running():
        stage.wait_all()
        # What the catch-up of the build must bring: deletions of keys that the load has seen or not.
        build = subprocess.Popen([sys.executable, "-m", "tests.integration.rebuilding", told(stage, point)])
        with writing(stage):
            assert build.wait(timeout=CHILD_S) == -signal.SIGKILL
        served = stage.serving()
        stage.wait_all()
        assert_equal_to_model(stage)
        again = rebuilt(stage)
        stage.wait_all()
    assert again != served
    assert stage.serving() == again
    assert_equal_to_model(stage)
    assert stage.verify().clean
    assert sorted(states(stage).values()) == ["retired", "serving"], "one is kept for a rollback, none is unfinished"
    assert tables(stage) == {f"rows:{name}" for name in states(stage)}


def told(stage: Stage, point: str | None) -> str:
    settings = stage.side.settings.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"settings": settings, "point": point})


def test_what_a_killed_build_has_loaded_is_not_loaded_again(stage: Stage) -> None:
    point = "in the load, before its progress is noted"
    build = subprocess.run([sys.executable, "-m", "tests.integration.rebuilding", told(stage, point)], timeout=CHILD_S)
    assert build.returncode == -signal.SIGKILL
    (unfinished,) = ledger.generations(stage.connection, "rows")
    assert unfinished.progress > "thing-"
    done = operations.rebuild(stage.side, projector="rows")
    assert (done["generation"], 0 < done["streams"] < 120) == ("g1", True)
    assert_equal_to_model(stage)


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


def test_an_unfinished_build_that_has_lain_for_long_is_dropped(stage: Stage) -> None:
    ledger.begin_generation(stage.connection, "rows", "g1", stage.side.plan("rows").topics)
    stage.connection.execute("UPDATE outbox.generation SET changed_at = changed_at - interval '2 hours'")
    assert rebuilt(stage) == "g2"
    assert states(stage) == {"g2": "serving"}


def test_a_build_that_is_told_to_stop_goes_on_when_run_again(stage: Stage) -> None:
    stop = threading.Event()
    stop.set()
    plan, stations = stage.side.plan("rows"), stage.side.stations("rows")
    with pytest.raises(Building, match="run it again"):
        rebuild.rebuild(plan, stations, stop=stop)
    assert states(stage) == {"g1": "building"}
    assert rebuilt(stage) == "g1"
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


def test_a_discard_that_is_cut_off_is_gone_on_with_from_the_beginning(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_generation: str) -> None:
        raise VerificationFailed("as if a record differed")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    plan, stations = stage.side.plan("rows"), stage.side.stations("rows")
    monkeypatch.setattr(ledger, "forget_generation", killed)
    with pytest.raises(KeyboardInterrupt):
        rebuild.rebuild(plan, stations, verify=differs)
    monkeypatch.undo()
    assert states(stage) == {"g1": "building"}
    assert rebuilt(stage, check=False) == "g1"
    assert_equal_to_model(stage)


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


def test_parked_streams_keep_their_last_good_records_in_a_new_generation(stage: Stage) -> None:
    stage.append("thing-1", put(b=1), bad(), put(c=1))
    stage.append("thing-2", put(b=1, odd=1), put(odd=2))
    rebuilt(stage)
    letters = {d.stream: d.version for d in stage.letters()}
    assert letters == {"thing-1": 4, "thing-2": 4}
    held = set(stage.held())
    assert {"thing-1#a", "thing-1#b", "thing-2#a", "thing-2#b"} <= held
    assert {"thing-1#!", "thing-1#c", "thing-2#odd"}.isdisjoint(held)
    with stage.running():
        stage.append("thing-1", put(d=1))
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        until(lambda: stage.letters() == [], "both are applied")
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_build_that_goes_on_with_a_mended_projection_parks_no_longer(stage: Stage) -> None:
    stage.append("thing-99", bad())
    plan, stations = stage.side.plan("rows"), stage.side.stations("rows")

    def fail(_generation: str) -> None:
        raise ProjectionError("stopped here")

    with pytest.raises(ProjectionError, match="stopped here"):
        rebuild.rebuild(plan, stations, verify=fail)
    assert [d.stream for d in ledger.dead_letters(stage.connection, "rows", "g1")] == ["thing-99"]
    stage.connection.execute("UPDATE outbox.generation SET progress = 'thing-98'")
    stage.projection.mended = True
    assert rebuilt(stage) == "g1"
    assert stage.letters() == []
    assert_equal_to_model(stage)


def test_what_is_given_up_while_a_build_loads_does_not_park_its_stream_for_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loading.Load.run

    def meanwhile(running: loading.Load, stop: threading.Event) -> tuple[int, int]:
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        return load(running, stop)

    stage.append("thing-1", bad(), put(b=1))
    with stage.running():
        stage.wait_all()
        assert [letter.stream for letter in stage.letters()] == ["thing-1"]
        monkeypatch.setattr(loading.Load, "run", meanwhile)
        assert rebuilt(stage) == "g2"
        until(lambda: stage.letters() == [], "it is tried once more in the new generation")
        assert {"thing-1#a", "thing-1#b"} <= set(stage.held())
        assert stage.verify().clean


def test_memory_stays_flat_however_long_the_log_is(stage: Stage) -> None:
    peaks = []
    for number in (5_000, 45_000):
        fill(stage, number)
        build = subprocess.run(
            [sys.executable, "-m", "tests.integration.rebuilding", told(stage, None)],
            timeout=120.0, check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append(int(build.stdout.splitlines()[-1]))
    assert len(stage.held()) > 45_000
    assert peaks[1] - peaks[0] < 16 * 1024 * 1024, f"{peaks} bytes"


def fill(stage: Stage, number: int) -> None:
    """Streams of one event each, straight into the log: that is what a rebuild reads."""
    data = stage.registry.encode("entity.patched", {"properties": {"a": "x" * 200}})
    stage.connection.execute(
        "INSERT INTO outbox.event (stream, version, type, id, data)"
        " SELECT 'thing-fill' || n, 1, 'entity.patched', gen_random_uuid(), %s FROM generate_series(1, %s::int) n"
        " ON CONFLICT DO NOTHING",
        [data, number],
    )
