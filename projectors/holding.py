"""One process a store folder: the embedded stores corrupt, or refuse, a folder that two processes open.

The lock is the kernel's (``flock``) on a file beside the folder: it goes with the process, however that ends,
so nothing is ever left to be cleared away by hand. Within a process all sinks and readers share it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from outbox.errors import OutboxError
from projectors.sinks.shared import Shared

PID_BYTES_MAX: Final = 32

_HELD: Final[Shared[int]] = Shared(os.close)
"""Open file descriptors, by the locks' paths."""


class StoreHeld(OutboxError):
    """Another process has the store's folder open."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a store's folder (or file) for this process. Raises :class:`StoreHeld`, at once and in one line."""
    with _HELD.hold(_lock_of(folder), lambda lock: _take(lock, folder)):
        yield


def holder_of(folder: Path) -> str | None:
    """The process that holds the folder, this one included, as its id (or "?"); None if none does."""
    try:
        lock = os.open(_lock_of(folder), os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(lock)
    else:
        return None
    finally:
        os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _take(path: Path, folder: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutboxError(f"{folder} cannot be opened: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _written(lock)
        os.close(lock)
        raise StoreHeld(f"{folder} is open in process {holder}: stop that one, or wait until it has ended") from None
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _written(lock: int) -> str:
    return os.pread(lock, PID_BYTES_MAX, 0).decode("ascii", "replace") or "?"
