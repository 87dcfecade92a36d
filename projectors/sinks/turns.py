"""A lock for an embedded store that must be asked one thing at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from outbox.errors import StoreUnavailable


@contextmanager
def acquired(lock: threading.Lock, timeout_s: float, busy: str) -> Iterator[None]:
    """Hold the lock. Raises :class:`~outbox.errors.StoreUnavailable` if it is not free in time; ``busy`` says why."""
    if not lock.acquire(timeout=timeout_s):
        raise StoreUnavailable(f"{busy}, waited {timeout_s:g} s")
    try:
        yield
    finally:
        lock.release()


class Turns:
    """A lock that whoever let it go cannot have again before another who waits: a writer between two of its
    statements lets a reader in."""

    def __init__(self, timeout_s: float, busy: str) -> None:
        self._timeout_s = timeout_s
        self._busy = busy
        self._next = threading.Lock()
        self._turn = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold the turn. Raises :class:`~outbox.errors.StoreUnavailable` if it does not come in time."""
        # Whoever waits for the turn holds _next, so the one that lets the turn go must queue behind it.
        with ExitStack() as stack:
            with acquired(self._next, self._timeout_s, self._busy):
                stack.enter_context(acquired(self._turn, self._timeout_s, self._busy))
            yield
