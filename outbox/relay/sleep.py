"""How an idle relay sleeps and is woken, without a notification per event.

NOTIFY makes commits wait for each other: sixteen writers that notify of every event were measured at 0.42 of their
rate. So a producer notifies only a relay that sleeps, and the relay says that it sleeps by an exclusive advisory
lock, of which every append tries the shared side until its transaction is over (``outbox.wake`` in 0003_append.sql;
PostgreSQL manual, 13.3.5 "Advisory Locks"; 9.28.10 "Advisory Lock Functions"):

1. Nothing was read. Try the lock. It is refused while a transaction that has appended is open: pause, read again.
2. With the lock in hand read once more: what was committed before it was granted is visible now, and whoever comes
   later finds the lock and notifies when it commits. So no row can slip between reading and sleeping.
3. Wait for the notification. Then give the lock back, so that nobody else notifies.

A second relay, of another name, does not get the lock and asks at intervals, as does one whose rows come from
somebody who writes to the outbox without these functions.
"""

from __future__ import annotations

import threading
from typing import Final

from outbox.database import Connection

LOCK: Final = (7_299_703, 0)
"""The advisory lock, as it stands in 0003_append.sql."""

UNLOCK: Final = f"CASE WHEN %(unlock)s THEN pg_advisory_unlock({LOCK[0]}, {LOCK[1]}) END"
"""What gives it back, as a column of a statement of which ``unlock`` is :meth:`Sleep.unlock`."""

PATIENCE_S: Final = 0.002
"""So long it only pauses: under traffic the next row is there before a sleep would have begun."""

SLEEP_MAX_S: Final = 0.5
"""Read again after this, whether woken or not."""

SLICE_S: Final = 0.25
"""How soon a sleeping relay notices that it is told to stop."""


class Sleep:
    """The sleep of one engine, on its connection (autocommit). Used by one thread.

    ``asleep``: whether it waits to be woken. ``locked``: whether producers notify; the first statement after it was
    woken gives the lock back on its way (:data:`UNLOCK`), since a round trip for that alone would delay what it was
    woken for.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listening = False
        self.asleep = self.locked = False

    def wait(self, stop: threading.Event, pause_s: float) -> None:
        """Pause, or fall asleep (and return at once: read once more), or sleep until woken."""
        if self.asleep:
            self._sleep(stop)
        elif pause_s < PATIENCE_S or not self._begin():
            stop.wait(pause_s)

    def end(self) -> None:
        """There are rows: be awake."""
        self.asleep = False

    def unlock(self) -> bool:
        """Whether the statement that is about to be sent has to give the lock back."""
        owed = self.locked and not self.asleep
        self.locked = self.locked and not owed
        return owed

    def _begin(self) -> bool:
        if self.locked:  # once is enough: the server counts
            self.asleep = True
            return True
        if not self._listening:
            self._connection.execute("LISTEN outbox")
            self._listening = True
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK, prepare=True).fetchone()
        self.asleep = self.locked = bool(row and row[0])
        if not self.asleep:
            list(self._connection.notifies(timeout=0))  # those to the relay that sleeps: nobody else takes them away
        return self.asleep

    def _sleep(self, stop: threading.Event) -> None:
        for _ in range(round(SLEEP_MAX_S / SLICE_S)):
            if stop.is_set():
                return
            # All that have come: one that is left would end the next sleep.
            if list(self._connection.notifies(timeout=SLICE_S, stop_after=1)):
                self.end()
                return
