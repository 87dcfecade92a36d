"""A log that goes back in time: everybody notices, nothing runs, and a reconcile brings the stores back to it."""

from __future__ import annotations

from pathlib import Path
from threading import Event as Flag

import pytest

from outbox.errors import LogWentBack
from outbox.settings import Settings
from projectors.reconcile import reconcile
from tests.integration.going_back import (  # noqa: F401
    Machine,
    anew,
    assert_a_reconcile_mends_it,
    assert_nothing_runs,
    common,
    dies,
    gone_back,
    lost,
    machine,
    settings,
)
from tests.integration.reading import assert_equal_to_model, every_broker, put, staged, until


@every_broker
def test_running_processes_notice_that_postgresql_went_back(broker: str, settings: Settings, machine: Machine) -> None:
    common(settings)
    machine.keep()
    with (
        pytest.raises(LogWentBack, match="restored to an earlier moment"),
        staged(settings) as stage,
        stage.running() as running,
    ):
        lost(stage)
        machine.go_back()
        until(lambda: running.check(), "they end")
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])
def test_a_relay_that_starts_finds_events_in_kafka_that_the_log_lacks(
    broker: str, settings: Settings, machine: Machine
) -> None:
    gone_back(settings, machine)
    with staged(settings) as stage, pytest.raises(LogWentBack, match="the broker holds event"):
        stage.side.write.relay().run(Flag(), drain=True)
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])
def test_a_relay_finds_lost_events_in_a_topic_that_the_restored_log_never_published_to(
    broker: str, settings: Settings, machine: Machine
) -> None:
    """Nor does it know the topic by an event until one is appended; no projector reads it, who could tell."""
    machine.keep()
    with staged(settings) as stage:
        stage.append("other-1", put(a="lost"))
        stage.side.write.relay().run(Flag(), drain=True)
    machine.go_back()
    with staged(settings) as stage:
        stage.side.write.relay().run(Flag(), drain=True)
        stage.append("other-1", put(a="new"))
        with pytest.raises(LogWentBack, match="the broker holds event"):
            stage.side.write.relay().run(Flag(), drain=True)
    assert_nothing_runs(settings)
    with staged(settings) as stage:
        reconcile(stage.side)
        stage.append("other-1", put(a="newer"))
        stage.side.write.relay().run(Flag(), drain=True)


@pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])
def test_a_projector_that_starts_finds_events_in_kafka_that_the_log_lacks(
    broker: str, settings: Settings, machine: Machine
) -> None:
    gone_back(settings, machine)
    with staged(settings) as stage, pytest.raises(LogWentBack, match="the broker holds event"):
        stage.side.runner("rows").run(Flag())
    assert_nothing_runs(settings)


@pytest.mark.parametrize("broker", ["local"])
def test_a_witness_beside_the_stores_knows_what_the_log_lost(
    broker: str, settings: Settings, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    gone_back(settings, machine)
    with staged(settings) as stage, pytest.raises(LogWentBack, match="a store holds event"):
        stage.side.runner("rows").run(Flag())
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["local"])
def test_a_reconcile_that_is_cut_off_goes_on(
    broker: str, settings: Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from projectors import reconcile as module

    (settings.data_dir).mkdir()
    gone_back(settings, machine)
    with staged(settings) as stage, pytest.raises(LogWentBack):
        stage.side.runner("rows").run(Flag())
    for point in ("_wait_for_relays", "_map", "_clear", "rebuild", "drop", "forget_marks"):
        with staged(settings) as stage, monkeypatch.context() as patched:
            patched.setattr(module, point, dies)
            with pytest.raises(KeyboardInterrupt):
                reconcile(stage.side, force=True)
    with staged(settings) as stage:
        reconcile(stage.side, force=True)
        assert_equal_to_model(stage)
        with stage.running():
            anew(stage)
        assert_equal_to_model(stage)
