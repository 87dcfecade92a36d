"""Start a process in a session of its own and end it by its pid, from this process or a later one.

A pid alone does not name a process for long, as the system gives it out again. `Pid` carries the time of birth too, and
every function here treats a process of another birth as gone. Signals go to the process and all its descendants where
a crash or a pause is meant, as PostgreSQL's backends would otherwise go on without their parent.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypedDict

import psutil

BIRTH_TOLERANCE_S = 2.0
"""Boot time is derived from the wall clock, which may be stepped between two readings of the same birth."""

KILL_WAIT_S = 10.0
STOP_WAIT_S = 2.0
"""One that waits for a disk stops once it has been answered."""
STOP_LOOK_S = 0.001
STOPPED = frozenset({psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


@dataclass(frozen=True, slots=True)
class Pid:
    """A process, safe against reuse of its number."""

    number: int
    born_s: float

    @classmethod
    def of(cls, number: int) -> Self:
        """Return the process that has this number now. Raises psutil.NoSuchProcess if there is none."""
        return cls(number, psutil.Process(number).create_time())


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run: the command, the folder, what to add to the environment, and the system user (None: ours)."""

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


def spawn(launch: Launch, log: Path) -> Pid:
    """Start the process, its output appended to `log`. The child outlives us unless someone ends it."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            launch.argv,
            cwd=launch.folder,
            env={**os.environ, **launch.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **identity(launch.user),
        )
    # From here on psutil waits for the child. Without a code of its own Popen would warn when it is collected.
    child.returncode = 0
    return Pid.of(child.pid)


class Identity(TypedDict):
    """Popen's arguments that say as whom to run."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def identity(user: str | None) -> Identity:
    """Return Popen's arguments for running as `user`, without any group of ours; None: as ourselves."""
    if user is None:
        return Identity(user=None, group=None, extra_groups=None)
    entry = pwd.getpwnam(user)
    return Identity(user=entry.pw_uid, group=entry.pw_gid, extra_groups=[])


def alive(pid: Pid) -> bool:
    """Tell whether the process still runs; paused counts as running."""
    return _find(pid) is not None


def resident_bytes(pid: Pid) -> int:
    """Return the memory of the process and its descendants (RSS, so shared pages count once a process); 0 if gone."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def stop(pid: Pid, with_signal: signal.Signals, wait_s: float) -> bool:
    """Ask the process to end, wait at most `wait_s`, then kill it. True if it ended by itself."""
    process = _find(pid)
    if process is None:
        return True
    resume(pid)  # a paused process would only read the request once it goes on
    with suppress(psutil.NoSuchProcess):
        process.send_signal(with_signal)
    try:
        process.wait(wait_s)
    except psutil.TimeoutExpired:
        kill(pid)
        return False
    return True


def kill(pid: Pid) -> None:
    """End the process and its descendants at once (SIGKILL) and wait until they are gone."""
    processes = pause(pid)
    _send(processes, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=KILL_WAIT_S)


def pause(pid: Pid) -> list[psutil.Process]:
    """Stop the process and its descendants in their tracks (SIGSTOP); connections stay open and nothing answers."""
    process = _find(pid)
    if process is None:
        return []
    _send([process], signal.SIGSTOP)  # the parent first: it can then start no child that the list below would miss
    _await_stop(process)
    processes = _tree(pid)
    _send(processes, signal.SIGSTOP)
    return processes


def _await_stop(process: psutil.Process) -> None:
    """A signal is only sent: until it has come to the process, that may be in the midst of a fork."""
    until = time.monotonic() + STOP_WAIT_S
    with suppress(psutil.NoSuchProcess):
        while process.status() not in STOPPED and time.monotonic() < until:
            time.sleep(STOP_LOOK_S)


def resume(pid: Pid) -> None:
    """Let a paused process and its descendants go on (SIGCONT)."""
    _send(list(reversed(_tree(pid))), signal.SIGCONT)


def _send(processes: list[psutil.Process], with_signal: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(with_signal)


def _tree(pid: Pid) -> list[psutil.Process]:
    process = _find(pid)
    if process is None:
        return []
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _find(pid: Pid) -> psutil.Process | None:
    try:
        process = psutil.Process(pid.number)
        if abs(process.create_time() - pid.born_s) > BIRTH_TOLERANCE_S:
            return None
        if process.status() == psutil.STATUS_ZOMBIE:
            process.wait(0)  # reaps it if it is our child
            return None
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return None
    return process
