"""Real processes, forked from a server process that has everything imported already: that takes 20 ms, not 2 s."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.until import PATIENCE_S, until

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.preloaded"])

DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2): when the server of forks goes, and it goes with us, its children go too."""
END_WITHIN_S = 20.0


class Child:
    """One process."""

    def __init__(self, name: str, process: Any) -> None:
        self.name = name
        self._process = process
        self._pid: int = process.pid

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def exit_code(self) -> int | None:
        """As Popen has it: negative if a signal ended it, None while it runs."""
        found: int | None = self._process.exitcode
        return found

    def tell_where(self) -> None:
        """Have it write the stacks of its threads into its log. One that is stopped does so once it goes on."""
        if self.alive:
            os.kill(self._pid, signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        self._process.kill()
        self._process.join()

    def stop(self) -> int | None:
        """SIGTERM; its exit code, or None if it did not end within the bound (it is killed then)."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)
        self._process.terminate()
        self._process.join(END_WITHIN_S)
        if self.alive:
            self.kill()
            return None
        return self.exit_code

    def await_heed(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has a handler for SIGTERM (or has ended): before that the signal simply ends it."""
        until(lambda: not self.alive or self._heeds(signal.SIGTERM), f"{self.name} listens to SIGTERM", timeout_s)

    def _heeds(self, number: int) -> bool:
        try:
            status = Path(f"/proc/{self._pid}/status").read_text("utf-8")
        except OSError:
            return True
        (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
        return bool(int(caught, 16) >> (number - 1) & 1)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def pause(self) -> None:
        """SIGSTOP; returns once it stands still."""
        self.signal(signal.SIGSTOP)
        self.await_pause()

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def await_pause(self, timeout_s: float = PATIENCE_S) -> None:
        until(lambda: self._status() == psutil.STATUS_STOPPED, f"{self.name} stands still", timeout_s)

    def await_end(self, timeout_s: float = PATIENCE_S) -> int | None:
        until(lambda: not self.alive, f"{self.name} ends", timeout_s)
        return self.exit_code

    def _status(self) -> str:
        try:
            return str(psutil.Process(self._pid).status())
        except psutil.NoSuchProcess:
            return psutil.STATUS_DEAD


def begin(name: str, target: Callable[..., object], *arguments: Any) -> Child:
    """Start ``target(*arguments)`` in a process."""
    process = CONTEXT.Process(target=_run, args=(target, *arguments), name=name)
    process.start()
    # Whoever starts a process asks all these whether they have ended: another lane would take the exit code, which is
    # to be had once, from under the one that waits for it (and gets 255).
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return Child(name, process)


def _run(target: Callable[..., object], *arguments: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(DEATH_SIGNAL, signal.SIGKILL)
    # A Ctrl-C at the terminal is for the harness, which then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target(*arguments)
