"""The errors of the local servers; each message is one line that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

LOG_TAIL_LINES = 25
"""Enough to hold a Java stack trace's first cause without burying the message above it."""


class LocalError(Exception):
    """Base of everything this package raises."""


class MissingTool(LocalError):
    """A program or library that a server needs is not on this machine."""


class DownloadFailed(LocalError):
    """Maven could not bring the jars of a server."""


class UnknownService(LocalError):
    """A service was named that this package does not know."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no service is called {name!r}; choose from {', '.join(known)}")
        self.name = name


class NotRunning(LocalError):
    """The service of this name does not run in this home."""


class StartFailed(LocalError):
    """A server ended before it answered, or did not answer in time.

    `str()` is the one line; `log_tail` holds the last lines it wrote, for whoever wants to look deeper.
    """

    def __init__(self, service: str, reason: str, log: Path) -> None:
        self.service = service
        self.reason = reason
        self.log = log
        self.log_tail = read_tail(log)
        last = self.log_tail.strip().splitlines()[-1:] or ["(it wrote nothing)"]
        super().__init__(f"{service} {reason}; its log {log} ends with: {last[0].strip()[:300]}")
        if self.log_tail:
            self.add_note(f"Last lines of {log}:\n{self.log_tail}")


class ServersUnavailable(LocalError):
    """No way was found to have the servers that were asked for."""


def read_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last `lines` lines of a log, or an empty string if there is none. Reads at most 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65_536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
