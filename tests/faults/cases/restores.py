"""PostgreSQL restored to an earlier moment: stores and broker hold events that the log has lost.

The log's server is the run's own, so that it goes back alone; the store's rows are in the server of all runs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from deploy.local.local import Local
from tests.faults.checks import Violation, log_rows
from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.servers import SETTINGS, prepare

WHAT_TO_DO = "outbox reconcile"
PROCESSES = ("relay", "project")
END_WITHIN_S = 60.0


class OwnPostgres:
    """A server whose data folder can be copied and put back, with what was appended in between forgotten."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._local = Local(run.folder / "own", settings={"postgres": SETTINGS["postgres"]})
        run.stack.callback(self._local.close)
        (server,) = self._local.start("postgres")
        self._copy = run.folder / "copy" / "data"
        self._copy.parent.mkdir()
        run.move_log(prepare(server.address, run.mark))

    def keep(self) -> None:
        """As a backup of its files would."""
        self._moving(self._data, self._copy)

    def go_back(self) -> None:
        before = self._ids()
        self._moving(self._copy, self._data)
        self._run.forgotten |= before - self._ids()

    @property
    def _data(self) -> Path:
        return self._local.home / "postgres" / "data"

    def _ids(self) -> set[str]:
        with self._run.connection() as connection:
            return {row.id for row in log_rows(connection)}

    def _moving(self, source: Path, target: Path) -> None:
        self._local.stop("postgres")
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)
        self._local.restart("postgres")


def _restored(run: Run) -> None:
    """Under the processes, or while they are away. They end, and say what to do; once that is done all is well."""
    postgres = OwnPostgres(run)
    run.begin()
    run.appended(run.source.randrange(20, 80))
    postgres.keep()
    _forgets(run, postgres)


def _restored_to_the_start(run: Run) -> None:
    """The copy is of a log that nothing had been published from: its map knows of no topic."""
    postgres = OwnPostgres(run)
    postgres.keep()
    run.begin()
    _forgets(run, postgres)


def _forgets(run: Run, postgres: OwnPostgres) -> None:
    run.appended(run.source.randrange(20, 80), 60)
    run.stop_writers()
    run.published()
    run.caught_up()
    if run.source.random() < 0.5:
        postgres.go_back()
    else:
        for name in PROCESSES:
            run.children[name].stop()
        postgres.go_back()
        _start(run)
    _halted(run)
    _start(run)  # as a supervisor would
    _halted(run)
    if not run.quietly:  # appends are not refused
        run.write(1)
        run.appended(20)
        run.stop_writers()
    run.must("reconcile")
    _start(run)
    run.over()
    run.write(1)
    run.appended(20)


def _start(run: Run) -> None:
    """Both: on the local broker the relay cannot know, and is told by the projector, whose store remembers."""
    for name in PROCESSES:
        run.again(name)


def _halted(run: Run) -> None:
    """Each must end by itself, with one line that says what to do."""
    for name in PROCESSES:
        code = run.children[name].await_end(END_WITHIN_S)
        run.quiet.add(name)
        if not code or WHAT_TO_DO not in run.log(name):
            run.found.append(Violation("I6", f"{name} ended with {code} and does not say what to do: {run.log(name)}"))


for _name, _inject in (("an earlier moment", _restored), ("before its first event", _restored_to_the_start)):
    fault(f"PostgreSQL: restored to {_name}", bound_s=60, cheap=False)(_inject)
    fault(f"PostgreSQL: restored to {_name}, Kafka", broker="kafka", bound_s=60, cheap=False)(_inject)
