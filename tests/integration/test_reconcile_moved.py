"""A log that was moved or promoted: it halts as one that went back would, unless something vouches for it."""

from __future__ import annotations

from pathlib import Path
from threading import Event as Flag

import pytest

from outbox.errors import LogWentBack
from outbox.log.identity import read_identity
from outbox.settings import Settings
from tests.integration.going_back import (  # noqa: F401
    anew,
    assert_a_reconcile_mends_it,
    assert_nothing_runs,
    common,
    dies,
    machine,
    settings,
)
from tests.integration.reading import assert_equal_to_model, put, staged


@pytest.mark.parametrize("broker", ["local"])
def test_a_log_moved_to_another_cluster_is_halted_and_goes_on_after_a_reconcile(
    broker: str, settings: Settings
) -> None:
    common(settings)
    with staged(settings) as stage:
        # As a dump and restore leaves it: rows and cursors with transaction ids that this cluster has not reached.
        stage.append("thing-1", put(b="waits"))
        with stage.connection.transaction():
            stage.connection.execute("SET LOCAL outbox.erasure = 'on'")
            stage.connection.execute("UPDATE outbox.log_identity SET system_identifier = 1")
            stage.connection.execute("UPDATE outbox.event SET xid = '900000'::xid8")
            stage.connection.execute("UPDATE outbox.outbox SET xid = '900000'::xid8")
            stage.connection.execute("UPDATE outbox.relay_cursor SET a = '900000:900000:', b = '900000:900000:'")
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["local"])
def test_another_system_identifier_alone_halts(broker: str, settings: Settings) -> None:
    common(settings)
    with staged(settings) as stage:
        stage.connection.execute("UPDATE outbox.log_identity SET system_identifier = 1")
        with pytest.raises(LogWentBack, match="moved from PostgreSQL system 1 to"):
            stage.side.write.relay().run(Flag(), drain=True)
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["local", "kafka-confluent"])
def test_a_cursor_ahead_of_every_transaction_halts(broker: str, settings: Settings) -> None:
    common(settings)
    with staged(settings) as stage:
        stage.connection.execute("UPDATE outbox.relay_cursor SET a = '900000:900000:', b = '900000:900000:'")
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["kafka-confluent"])
def test_a_fail_over_that_lost_nothing_is_accepted(broker: str, settings: Settings) -> None:
    common(settings)
    with staged(settings) as stage:
        stage.connection.execute("UPDATE outbox.log_identity SET timeline = 0")
        with stage.running():
            anew(stage)
            assert_equal_to_model(stage)
        assert not read_identity(stage.connection).promoted


@pytest.mark.parametrize("broker", ["local"])
def test_a_promotion_that_nothing_can_vouch_for_halts(broker: str, settings: Settings, tmp_path: Path) -> None:
    common(settings)
    with staged(settings) as stage:
        stage.connection.execute("UPDATE outbox.log_identity SET timeline = 0")
        with pytest.raises(LogWentBack, match="promoted"):
            stage.side.runner("rows").run(Flag())
    assert_a_reconcile_mends_it(settings)


@pytest.mark.parametrize("broker", ["local"])
def test_a_promotion_is_accepted_on_the_word_of_a_witness(broker: str, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    common(settings)
    with staged(settings) as stage:
        stage.connection.execute("UPDATE outbox.log_identity SET timeline = 0")
        with stage.running():
            anew(stage)
        assert not read_identity(stage.connection).promoted


@pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])
def test_a_relay_killed_between_kafka_and_its_map_is_no_log_that_went_back(
    broker: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.relay import leader

    common(settings)
    with staged(settings) as stage:
        stage.append("thing-1", put(b=1))
        with monkeypatch.context() as patched:
            patched.setattr(leader.cursors, "advance", dies)
            with pytest.raises(KeyboardInterrupt):
                stage.side.write.relay().run(Flag(), drain=True)
        with stage.running():
            anew(stage)
            assert_equal_to_model(stage)
