"""What tests of a log that goes back share: a server whose data can be put back, and what is lost and comes after."""

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
from outbox.database import connected
from outbox.errors import LogWentBack
from outbox.log.identity import read_identity
from outbox.log.migrate import migrate
from outbox.settings import Settings
from projectors import ledger
from projectors.reconcile import reconcile
from tests.integration.reading import Stage, assert_equal_to_model, deleted, put, settings_of, staged

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


def gone_back(settings: Settings, machine: Machine) -> None:
    """The log goes back to before what is lost, while nothing runs."""
    common(settings)
    machine.keep()
    with staged(settings) as stage, stage.running():
        lost(stage)
    machine.go_back()


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


def dies(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
