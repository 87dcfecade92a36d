"""A small process that ends the servers if the one that started them dies without doing so.

A test run that is killed would otherwise leave gigabytes of servers behind. The guard reads a pipe whose other end
only we hold: each line names a process; the end of the file means that we are gone, in whichever way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from deploy.local import process
from deploy.local.process import Pid

CLOSE_WAIT_S = 10.0
RELEASE = "release"
"""The line that sends it away without ending anything."""


class Guard:
    """Watches over the processes that it is told of. Costs one idle Python process, from the first of them on."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # services start side by side

    def begin(self) -> None:
        """Be there before a process is started: it takes longer than many a server does to make its files."""
        with self._lock:
            if self._child is None:
                self._child = _spawn()

    def watch(self, pid: Pid) -> None:
        """End this process if we die before `close`."""
        self.begin()
        with self._lock:
            assert self._child is not None
            assert self._child.stdin is not None
            self._child.stdin.write(f"{pid.number} {pid.born_s}\n")
            self._child.stdin.flush()

    def release(self) -> None:
        """Dismiss the guard: what it watched runs on without us."""
        if self._child is not None:
            self._child.communicate(f"{RELEASE}\n", timeout=CLOSE_WAIT_S)
            self._child = None

    def close(self) -> None:
        """Dismiss the guard: the processes it watched are ended if they still run."""
        if self._child is not None:
            self._child.communicate(timeout=CLOSE_WAIT_S)
            self._child = None


def _spawn() -> subprocess.Popen[str]:
    # A session of its own, so that a Ctrl-C meant for us does not reach it before the servers are ended.
    return subprocess.Popen(
        [sys.executable, "-c", "from deploy.local.guard import main; main()"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def main() -> None:
    """Read pids until the pipe ends, then end what still runs; nothing, if we are released before."""
    watched: list[Pid] = []
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            if line.strip() == RELEASE:
                return
            number, born_s = line.split()
            watched.append(Pid(int(number), float(born_s)))
    for pid in watched:
        process.kill(pid)
