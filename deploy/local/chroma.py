"""Chroma's own server, `chroma run`, from the PyPI package `chromadb`."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import LocalError, MissingTool
from deploy.local.ports import HOST
from deploy.local.probe import answers_http
from deploy.local.process import Launch
from deploy.local.server import Site


@dataclass(frozen=True, slots=True)
class Chroma:
    """One server over one persistent folder."""

    name: str = "chroma"
    port_count: int = 1
    stop_signal: signal.Signals = signal.SIGTERM

    def address(self, port: int) -> str:
        """Return the URL."""
        return f"http://{HOST}:{port}"

    def answers(self, port: int) -> bool:
        """Tell whether its heart beats."""
        return answers_http(port, "/api/v2/heartbeat")

    def prepare(self, site: Site) -> Launch:
        """Return the command, the database set to a write-ahead log. Raises LocalError on settings: it takes none."""
        if site.settings:
            raise LocalError(f"chroma takes no settings, yet {', '.join(sorted(site.settings))} was given")
        data = site.folder / "data"
        _log_ahead(data)
        options = ("run", "--path", str(data), "--host", HOST, "--port", str(site.port))
        return Launch((_program(), *options), site.folder, {"ANONYMIZED_TELEMETRY": "False"})


def _log_ahead(data: Path) -> None:
    """Have SQLite append to one log instead of keeping a journal aside, as it does until a database is told otherwise.

    Both wait for the disk at each commit; a journal does so several times. The mode is kept in the file's header, so
    whoever opens the file next follows it (https://sqlite.org/wal.html, "Persistence of WAL mode").
    """
    data.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as database:
        database.execute("PRAGMA journal_mode = WAL")


def _program() -> str:
    """Prefer the script of the Python that runs us: it is the version that the requirements pin."""
    beside = Path(sys.executable).parent / "chroma"
    found = str(beside) if beside.exists() else shutil.which("chroma")
    if found is None:
        raise MissingTool("the Chroma server is not installed: run `pip install chromadb`")
    return found
