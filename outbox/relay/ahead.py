"""Reading one page ahead: while a page is published, the next one is read in a thread of its own.

A relay that is behind would otherwise let PostgreSQL stand still while the broker works, and the broker while
PostgreSQL does. Nothing is published, and no cursor written, in another order because of it.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

from outbox.relay.cursor import Cursor
from outbox.relay.poll import Page


class Engine(Protocol):
    """How rows leave PostgreSQL. Used by one thread at a time."""

    def read(self, cursor: Cursor, limit: int) -> Page:
        """What comes after ``cursor``, about ``limit`` rows; none if nothing is new."""

    def written(self, cursor: Cursor) -> None:
        """The cursor is committed, and on disk: what it has passed is not needed any more."""

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """Wait for something new, at most ``timeout_s``; a poll cannot know, and sleeps."""

    def close(self) -> None:
        """Let go of what is held; the cursor says where to go on."""


class ReadAhead:
    """An engine that the leader may ask to read on. Whatever else is asked of it waits until it has read."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reader = ThreadPoolExecutor(1, "outbox-read")
        self._ahead: tuple[Page, Future[Page]] | None = None
        """A page that was given, and the one behind it, once it is there."""

    def read(self, cursor: Cursor, limit: int) -> Page:
        """As an engine does. A page that has been read ahead is given once the one before it is published (which
        ``cursor`` says), and until then that one again."""
        if self._ahead is None:
            return self.engine.read(cursor, limit)
        given, following = self._ahead
        if cursor != given.cursor:
            return given
        self._ahead = None
        found = following.result()
        if found.rows or found.settle:
            return found
        return self.engine.read(found.cursor, limit)  # there was nothing some time ago: there may be by now

    def begin(self, given: Page, limit: int) -> None:
        """Begin to read the page that comes after ``given``, which :meth:`read` has just returned."""
        if self._ahead is None:
            self._ahead = given, self._reader.submit(self.engine.read, given.cursor, limit)

    def written(self, cursor: Cursor) -> None:
        """As an engine does."""
        self._settle()
        self.engine.written(cursor)

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """As an engine does."""
        self._settle()
        self.engine.wait(stop, timeout_s)

    def close(self) -> None:
        """As an engine does."""
        self._reader.shutdown()
        self.engine.close()

    def _settle(self) -> None:
        if self._ahead is not None:
            wait([self._ahead[1]])
