"""Rebuild on real PostgreSQL and brokers: readers notice nothing, writers are caught up with, and memory stays flat."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox.database import connected
from projectors import ledger, loading, rebuild
from projectors.record import Change
from projectors.resilience import Wrapped
from projectors.session import Session
from tests.alongside import alongside
from tests.integration import asking
from tests.integration.generations import rebuilt, stage, writing  # noqa: F401
from tests.integration.reading import Stage, assert_equal_to_model, every_broker, put
from tests.integration.rebuilding import command


@every_broker
def test_readers_of_the_serving_generation_never_find_it_empty(stage: Stage) -> None:
    answers: list[int] = []

    def read(ended: threading.Event) -> None:
        with connected(stage.side.write.dsn) as connection, stage.side.open_sink("rows") as sink:
            while not ended.is_set():
                serving = ledger.serving(connection, "rows")
                answers.append(len(list(sink.scan(serving, [f"thing-{n}#a" for n in range(120)]))))
                seen = connection.execute("SELECT count(*) FROM outbox_rows.rows WHERE key ~ '^thing-[0-9]+#a$'")
                answers.append(min(seen.fetchone()[0], 120))

    with stage.running():
        stage.wait_all()
        with alongside(read):
            with writing(stage):
                made = [rebuilt(stage) for _ in range(2)]
            stage.wait_all()
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


def test_memory_stays_flat_however_long_the_log_is(stage: Stage) -> None:
    peaks = []
    for number in (5_000, 45_000):
        fill(stage, number)
        build = subprocess.run(command(stage), timeout=120.0, check=True, capture_output=True, text=True)
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
