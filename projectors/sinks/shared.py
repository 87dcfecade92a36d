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
    leaves: threading.Timer | None = None
    """Closes what nobody holds any more, once it has rested."""


class Shared(Generic[T]):
    """Counts the holders of each path's resource.

    What is slow to open may stay open for ``rests_s`` after the last of them, who may be followed by the next at once;
    ``fits`` says whether it still serves its path when that one comes.
    """

    def __init__(
        self, close: Callable[[T], None], *, rests_s: float = 0.0, fits: Callable[[T], bool] = lambda _: True
    ) -> None:
        self._close = close
        self._rests_s = rests_s
        self._fits = fits
        self._held: dict[tuple[int, str], _Held[T]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, path: Path, open_: Callable[[Path], T]) -> Iterator[T]:
        """The path's resource, opened by ``open_`` if it is not open; closed when nobody holds it any more."""
        # A forked child cannot use its parent's resource: the process id makes it open its own.
        key = (os.getpid(), str(path.resolve()))
        with self._lock:
            self._wake(key)
            if key not in self._held:
                self._held[key] = _Held(open_(path))
            held = self._held[key]
            held.holders += 1
        try:
            yield held.resource
        finally:
            self._leave(key, held)

    def _wake(self, key: tuple[int, str]) -> None:
        """Have what rests stay, if it still fits."""
        held = self._held.get(key)
        if held is None or held.leaves is None:
            return
        held.leaves.cancel()
        held.leaves = None
        if not self._fits(held.resource):
            self._end(key)

    def _leave(self, key: tuple[int, str], held: _Held[T]) -> None:
        with self._lock:
            held.holders -= 1
            if held.holders:
                return
            if self._rests_s:
                held.leaves = threading.Timer(self._rests_s, self._rested, (key, held))
                held.leaves.daemon = True
                held.leaves.start()
            else:
                self._end(key)

    def _rested(self, key: tuple[int, str], held: _Held[T]) -> None:
        with self._lock:
            if self._held.get(key) is held and not held.holders:
                self._end(key)

    def _end(self, key: tuple[int, str]) -> None:
        # Closed under the lock: whoever comes next must find the path free.
        self._close(self._held.pop(key).resource)
