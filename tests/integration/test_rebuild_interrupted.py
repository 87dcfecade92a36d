"""A build that is killed, stopped or cut off: what has it costs nothing, and the next one ends what it began."""

from __future__ import annotations

import signal
import subprocess
import threading

import pytest

from outbox.errors import VerificationFailed
from projectors import ledger, operations, rebuild
from projectors.building import Building
from tests.integration.generations import rebuilt, stage, states, tables, writing  # noqa: F401
from tests.integration.reading import Stage, assert_equal_to_model
from tests.integration.rebuilding import POINTS, command

CHILD_S = 60.0


@pytest.mark.parametrize("point", POINTS)
def test_a_rebuild_killed_and_run_again_equals_the_model(stage: Stage, point: str) -> None:
    with stage.running():
        stage.wait_all()
        # What the catch-up of the build must bring: deletions of keys that the load has seen or not.
        build = subprocess.Popen(command(stage, point))
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


def test_what_a_killed_build_has_loaded_is_not_loaded_again(stage: Stage) -> None:
    build = subprocess.run(command(stage, "in the load, before its progress is noted"), timeout=CHILD_S)
    assert build.returncode == -signal.SIGKILL
    (unfinished,) = ledger.generations(stage.connection, "rows")
    assert unfinished.progress > "thing-"
    done = operations.rebuild(stage.side, projector="rows")
    assert (done["generation"], 0 < done["streams"] < 120) == ("g1", True)
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
