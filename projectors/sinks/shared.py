"""One open resource per path and process, for embedded stores that must not be opened twice.

Ladybug corrupts a database that one process opens twice, Tantivy lets one writer in: sinks and readers on
the same path share what the first of them opened, and the last to leave closes it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Held(Generic[T]):
    resource: T
    holders: int = 0


class Shared(Generic[T]):
    """Counts the holders of each path's resource."""

    def __init__(self, close: Callable[[T], None]) -> None:
        self._close = close
        self._held: dict[tuple[int, str], _Held[T]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, path: Path, open_: Callable[[Path], T]) -> Iterator[T]:
        """The path's resource, opened by ``open_`` if nobody holds it, closed when nobody holds it any more."""
        # A forked child cannot use its parent's resource: the process id makes it open its own.
        key = (os.getpid(), str(path.resolve()))
        with self._lock:
            if key not in self._held:
                self._held[key] = _Held(open_(path))
            held = self._held[key]
            held.holders += 1
        try:
            yield held.resource
        finally:
            self._leave(key, held)

    def _leave(self, key: tuple[int, str], held: _Held[T]) -> None:
        # Closed under the lock: whoever comes next must find the path free.
        with self._lock:
            held.holders -= 1
            if not held.holders:
                del self._held[key]
                self._close(held.resource)
