"""Processes killed by SIGKILL at random moments, while events are appended: nothing is lost, doubled or left over."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import tests
from outbox.database import connected
from outbox.embedded import embedded_postgres
from outbox.log.append import append
from outbox.settings import load
from projectors import ledger
from projectors.wait import wait_for
from projectors.wiring import ReadSide, Running, open_read_side
from tests.e2e.outbox_command import OUTBOX, environment
from tests.faults.workload import (
    Workload,
    an_event,
    assert_broker_has_each_event_in_order,
    assert_log_holds_each_event_once,
    assert_store_equals_log,
)
from tests.integration.reading import until

ROOT = Path(tests.__file__).parents[1]
CATCH_UP_S = 90.0
SEED = 20_26


class Fleet:
    """Processes of the ``outbox`` command that are killed and started again."""

    def __init__(self, commands: Mapping[str, list[str]], settings: Mapping[str, str], folder: Path) -> None:
        self._commands = commands
        self._environment = environment({**settings, "PYTHONPATH": str(ROOT)})
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            for name in self._commands:
                self._start(name)
            yield
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()

    def kill_at_random(self, times: int, seed: int, between_s: tuple[float, float]) -> None:
        """Kill one, start it at once, so many times, in intervals drawn from these bounds."""
        source, never = random.Random(seed), threading.Event()
        for _ in range(times):
            never.wait(source.uniform(*between_s))
            name = source.choice(sorted(self._commands))
            process = self._running[name]
            assert process.poll() is None, f"{name} ended by itself:\n{self._log(name)[-3_000:]}"
            process.kill()
            assert process.wait() == -signal.SIGKILL
            self._start(name)

    def check(self) -> None:
        for name, process in self._running.items():
            assert process.poll() is None, f"{name} ended by itself:\n{self._log(name)[-3_000:]}"

    def _start(self, name: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [OUTBOX, *self._commands[name]], env=self._environment, cwd=self._folder, stdout=log, stderr=log
            )

    def _log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text("utf-8")


def wait_until_applied(side: ReadSide, workload: Workload) -> None:
    """Until every projector has applied the last event."""
    with connected(side.write.dsn) as connection:
        done = append(connection, "thing-last", an_event(random.Random(1)))
        workload.sent["thing-last"] += [str(id_) for id_ in done.ids]
        wait_for(connection, done.token, {n: p.topics for n, p in side.plans().items()}, CATCH_UP_S)


def assert_everything_is_there(side: ReadSide, workload: Workload) -> None:
    assert sum(map(len, workload.sent.values())) > 100
    assert_log_holds_each_event_once(side, workload)
    assert_broker_has_each_event_in_order(side, f"{side.settings.prefix}.thing", workload)
    for name in side.projecting:
        with connected(side.write.dsn) as connection:
            generation = ledger.serving(connection, name)
            assert ledger.dead_letters(connection, name) == []
        assert generation is not None
        assert_store_equals_log(side, name, generation)


def built_in(mark: str, stores: Mapping[str, str]) -> dict[str, object]:
    return {f"{k}_{mark}": {"projection": k, "store": s, "categories": ["thing"]} for k, s in stores.items()}


def test_relay_and_projectors_killed_on_servers(
    address: Callable[[str], str], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = uuid.uuid4().hex[:8]
    projectors = built_in(mark, {"vectors": "chroma", "graph": "neo4j", "documents": "elasticsearch"})
    projectors["rows"] = {"projection": "tests.integration.reading:Parts", "store": "postgres"}
    settings = {
        "OUTBOX_MODE": "servers",
        "OUTBOX_PREFIX": f"kill{mark}",
        "OUTBOX_DATABASE__DSN": database,
        "OUTBOX_KAFKA__BOOTSTRAP": address("kafka"),
        "OUTBOX_KAFKA__PARTITIONS": "3",
        "OUTBOX_STORES": json.dumps(
            {s: {"url": address(s)} for s in ("chroma", "neo4j", "elasticsearch")} | {"postgres": {"dsn": database}}
        ),
        "OUTBOX_PROJECTORS": json.dumps(projectors),
    }
    # Two processes for the rows: they share its partitions, and one may take over what the other was killed at.
    commands = {"relay": ["relay"], "relay2": ["relay"], "all": ["project"], "rows": ["project", "rows"]}
    fleet, workload = Fleet(commands, settings, tmp_path), Workload(database, SEED)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with open_read_side(load()) as side, fleet.running():
        with workload.running():
            fleet.kill_at_random(7, SEED, (0.5, 3.0))
        wait_until_applied(side, workload)
        fleet.check()
        assert_everything_is_there(side, workload)


def test_the_embedded_process_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    projectors = built_in("e", {"vectors": "chroma", "graph": "ladybug", "documents": "tantivy"})
    settings = {"OUTBOX_DATA_DIR": str(tmp_path / "data"), "OUTBOX_PROJECTORS": json.dumps(projectors)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    fleet = Fleet({"up": ["up"]}, settings, tmp_path)
    with embedded_postgres(tmp_path / "data" / "postgres") as dsn:
        workload = Workload(dsn, SEED + 1)
        with fleet.running():
            until(lambda: migrated(dsn), "it has made its tables")
            with workload.running():
                fleet.kill_at_random(5, SEED, (2.0, 5.0))
        # The process is dead by another kill; what is left to do is done here.
        with open_read_side(load()) as side:
            with Running(side):
                wait_until_applied(side, workload)
            assert_everything_is_there(side, workload)
    assert not (tmp_path / "data" / "postgres" / "postmaster.pid").exists(), "PostgreSQL does not outlive its users"


def migrated(dsn: str) -> bool:
    with connected(dsn) as connection:
        row = connection.execute("SELECT to_regclass('outbox.dead_letter') IS NOT NULL").fetchone()
        return bool(row and row[0])
