"""Dead letters and rebuilds: what is parked, mended or given up, before a build and in its midst."""

from __future__ import annotations

import threading

import pytest

from outbox.errors import ProjectionError
from projectors import ledger, loading, operations, rebuild
from tests.integration.generations import rebuilt, stage  # noqa: F401
from tests.integration.reading import Stage, assert_equal_to_model, bad, put, until


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
