"""A log that goes back in time: everybody notices, nothing runs, and a reconcile brings the stores back to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from deploy.local.local import Local
from outbox.backup import backup, restore
from outbox.database import connected
from outbox.errors import LogWentBack
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.identity import read_identity
from outbox.log.migrate import migrate
from outbox.settings import Projecting, Settings
from projectors import ledger
from projectors.reconcile import reconcile
from tests.e2e.outbox_command import answer, outbox
from tests.integration.reading import (
    Stage,
    assert_equal_to_model,
    deleted,
    put,
    settings_of,
    staged,
    until,
)

Databases = Callable[[], str]


@dataclass
class Machine:
    """A PostgreSQL of the test's own, whose data folder can be copied and put back."""

    local: Local
    copy: Path

    @property
    def dsn(self) -> str:
        return self.local["postgres"].address

    def keep(self) -> None:
        """Copy the folder of a stopped server."""
        self._moving(self._data, self.copy)

    def go_back(self) -> None:
        """Put the copy in the place of what is there now."""
        self._moving(self.copy, self._data)

    @property
    def _data(self) -> Path:
        return self.local.home / "postgres" / "data"

    def _moving(self, source: Path, target: Path) -> None:
        self.local.stop("postgres")
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)
        self.local.restart("postgres")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Local(settings={"postgres": {"fsync": "off"}}) as local:
        local.start("postgres")
        machine = Machine(local, local.home / "copy")
        with connected(machine.dsn) as connection:
            migrate(connection)
        yield machine


@pytest.fixture
def settings(
    broker: str, machine: Machine, new_database: Databases, address: Callable[[str], str], tmp_path: Path
) -> Settings:
    """The store is another database than the log: it does not go back."""
    return settings_of(
        broker, machine.dsn, address, stores={"postgres": {"dsn": new_database()}}, data_dir=tmp_path / "data"
    )


every_way = pytest.mark.parametrize("broker", ["local", "kafka-confluent", "kafka-python"])


def common(settings: Settings) -> None:
    """What is still there after the log went back."""
    with staged(settings) as stage, stage.running():
        for n in range(20):
            stage.append(f"thing-{n}", put(a=n))
        stage.append("thing-3", deleted())
        stage.wait_all()


def lost(stage: Stage) -> None:
    """What the log will lose: live records, tombstones (one over a tombstone), a whole stream."""
    for n in range(5, 8):
        stage.append(f"thing-{n}", put(a="lost", b="lost"))
    stage.append("thing-2", deleted())
    stage.append("thing-3", put(a="lost"))
    stage.append("thing-3", deleted())
    stage.append("thing-99", put(a="lost"))
    stage.wait_all()


def anew(stage: Stage) -> None:
    """Other events at the versions that were lost."""
    for n in range(20):
        stage.append(f"thing-{n}", put(c="new"))
    stage.append("thing-99", put(c="new"))
    stage.wait_all()


def assert_nothing_runs(settings: Settings) -> None:
    with staged(settings) as stage:
        with pytest.raises(LogWentBack, match="outbox reconcile"):
            stage.side.write.relay().run(Flag(), drain=True)
        with pytest.raises(LogWentBack, match="outbox reconcile"):
            stage.side.runner("rows").run(Flag())


def assert_a_reconcile_mends_it(settings: Settings) -> None:
    with staged(settings) as stage:
        before = read_identity(stage.connection)
        assert before.halted is not None
        assert "\n" not in before.halted
        done = reconcile(stage.side)
        assert [b.projector for b in done.built] == ["rows"]
        assert_equal_to_model(stage)
        assert "thing-99#a" not in stage.held()
        assert [g.state for g in ledger.generations(stage.connection, "rows")] == ["serving"]
        assert read_identity(stage.connection).log_id != before.log_id
        with stage.running():
            anew(stage)
            assert_equal_to_model(stage)
        assert stage.letters() == []
        assert reconcile(stage.side).reason == "", "nothing is wrong any more"


@every_way
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
    common(settings)
    machine.keep()
    with staged(settings) as stage, stage.running():
        lost(stage)
    machine.go_back()
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
    common(settings)
    machine.keep()
    with staged(settings) as stage, stage.running():
        lost(stage)
    machine.go_back()
    with staged(settings) as stage, pytest.raises(LogWentBack, match="the broker holds event"):
        stage.side.runner("rows").run(Flag())
    assert_nothing_runs(settings)


@pytest.mark.parametrize("broker", ["local"])
def test_a_witness_beside_the_stores_knows_what_the_log_lost(
    broker: str, settings: Settings, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    common(settings)
    machine.keep()
    with staged(settings) as stage, stage.running():
        lost(stage)
    machine.go_back()
    with staged(settings) as stage, pytest.raises(LogWentBack, match="a store holds event"):
        stage.side.runner("rows").run(Flag())
    assert_nothing_runs(settings)
    assert_a_reconcile_mends_it(settings)


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
            patched.setattr(leader.cursors, "advance", _dies)
            with pytest.raises(KeyboardInterrupt):
                stage.side.write.relay().run(Flag(), drain=True)
        with stage.running():
            anew(stage)
            assert_equal_to_model(stage)


def _dies(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("broker", ["local"])
def test_a_reconcile_that_is_cut_off_goes_on(
    broker: str, settings: Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from projectors import reconcile as module

    (settings.data_dir).mkdir()
    common(settings)
    machine.keep()
    with staged(settings) as stage, stage.running():
        lost(stage)
    machine.go_back()
    with staged(settings) as stage, pytest.raises(LogWentBack):
        stage.side.runner("rows").run(Flag())
    for point in ("_wait_for_relays", "_map", "_clear", "rebuild", "drop", "forget_marks"):
        with staged(settings) as stage, monkeypatch.context() as patched:
            patched.setattr(module, point, _dies)
            with pytest.raises(KeyboardInterrupt):
                reconcile(stage.side, force=True)
    with staged(settings) as stage:
        reconcile(stage.side, force=True)
        assert_equal_to_model(stage)
        with stage.running():
            anew(stage)
        assert_equal_to_model(stage)


def test_every_store_rebuilt_from_a_restored_backup_equals_the_one_before(
    database: str, empty_database: str, new_database: Databases, address: Callable[[str], str], tmp_path: Path
) -> None:
    both = {
        "rows": Projecting(projection="parts", store="postgres"),
        "documents": Projecting(projection="documents", store="tantivy", categories=("thing",)),
    }
    stores = {"postgres": {"dsn": new_database()}}
    more: dict[str, Any] = {"projectors": both, "stores": stores, "data_dir": tmp_path / "data"}
    (tmp_path / "data").mkdir()
    settings = settings_of("local", database, address, **more)
    with staged(settings) as stage:
        with stage.running():
            for n in range(60):
                stage.append(f"thing-{n}", upserted(n, a=n), upserted(n, b=n))
            stage.append("thing-7", deleted())
            stage.wait_all()
        before = {name: stage.held(name) for name in both}
        backup(stage.connection, tmp_path / "b", stage.registry)
        with stage.running():  # and what happened later is lost
            stage.append("thing-1", upserted(1, a="lost"), upserted(1, d="lost"))
            stage.append("thing-2", deleted())
            stage.append("thing-98", upserted(98, a="lost"))
            stage.wait_all()
        assert {name: stage.held(name) for name in both} != before
    with connected(empty_database) as connection:
        restore(connection, tmp_path / "b")
    again = settings.model_copy(update={"database": settings.database.model_copy(update={"dsn": empty_database})})
    assert_nothing_runs(again)
    with staged(again) as stage:
        assert ledger.generations(stage.connection, "rows") == [], "nothing was loaded over what the store holds"
        assert {b.projector for b in reconcile(stage.side).built} == set(both)
        assert {name: stage.held(name) for name in both} == before
        assert len(before["documents"]) == 59
        with stage.running():
            stage.append("thing-1", upserted(1, c="new"))
            stage.append("thing-98", upserted(98, c="new"))
            stage.wait_all()
        assert_equal_to_model(stage)
        assert all(stage.verify(name).clean for name in both)


def test_the_commands_lead_from_a_backup_to_stores_that_serve(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    with connected(database) as connection:
        for n in range(20):
            append(connection, f"entity-{n}", upserted(n, a=n))
    before = {"OUTBOX_DATABASE__DSN": database, "OUTBOX_DATA_DIR": str(tmp_path / "before")}
    after = {"OUTBOX_DATABASE__DSN": empty_database, "OUTBOX_DATA_DIR": str(tmp_path / "after")}
    assert answer("backup", str(tmp_path / "b"), settings=before, cwd=tmp_path)["events"] == 20
    assert answer("restore", str(tmp_path / "b"), settings=after, cwd=tmp_path)["events"] == 20
    halted = outbox("relay", "--drain", settings=after, cwd=tmp_path)
    assert (halted.returncode, len(halted.stderr.splitlines())) == (1, 1)
    assert "run `outbox reconcile`" in halted.stderr
    done = answer("reconcile", settings=after, cwd=tmp_path)
    assert {b["projector"]: b["records"] for b in done["built"]} == {"vectors": 20, "graph": 20, "documents": 20}
    assert outbox("relay", "--drain", settings=after, cwd=tmp_path).returncode == 0
    assert "nothing says" in outbox("reconcile", settings=after, cwd=tmp_path).stdout


def upserted(n: int, **parts: Any) -> NewEvent:
    return NewEvent("entity.upserted", {"kind": "k", "name": f"n{n}", "text": f"text {n}", "properties": parts})
