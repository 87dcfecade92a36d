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

PATIENCE_S: Final = 0.002
"""So long it only pauses: under traffic the next row is there before a sleep would have begun."""

SLEEP_MAX_S: Final = 0.5
"""Read again after this, whether woken or not."""

SLICE_S: Final = 0.1
"""How soon a sleeping relay notices that it is told to stop."""


class Sleep:
    """The sleep of one engine, on its connection (autocommit). Used by one thread.

    ``asleep``: whether producers notify.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listening = False
        self.asleep = False

    def wait(self, stop: threading.Event, pause_s: float) -> None:
        """Pause, or fall asleep (and return at once: read once more), or sleep until woken."""
        if self.asleep:
            self._sleep(stop)
        elif pause_s < PATIENCE_S or not self._begin():
            stop.wait(pause_s)

    def end(self) -> None:
        """There are rows: be awake."""
        if self.asleep:
            self._connection.execute("SELECT pg_advisory_unlock(%s, %s)", LOCK, prepare=True)
            self.asleep = False

    def _begin(self) -> bool:
        if not self._listening:
            self._connection.execute("LISTEN outbox")
            self._listening = True
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s, %s)", LOCK, prepare=True).fetchone()
        self.asleep = bool(row and row[0])
        return self.asleep

    def _sleep(self, stop: threading.Event) -> None:
        for _ in range(round(SLEEP_MAX_S / SLICE_S)):
            if stop.is_set():
                return
            if any(True for _ in self._connection.notifies(timeout=SLICE_S, stop_after=1)):
                self.end()
                return
