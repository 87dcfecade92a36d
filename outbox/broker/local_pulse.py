"""The heartbeat of a process's members: one thread and one connection for all of them.

It is apart from polling so that a projector busy with a slow store is not taken for dead; a member that has not
polled for ``poll_interval_max_s`` is let die all the same.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Final

from outbox.broker.local_link import Link
from outbox.broker.local_settings import LocalSettings
from outbox.errors import BrokerError
from outbox.logs import logger

log: Final = logger("outbox.broker")

BEATS_PER_LEASE: Final = 3
STOP_WAIT_S: Final = 5.0

BEAT: Final = "UPDATE outbox.broker_member SET beat_at = clock_timestamp() WHERE member = ANY(%s)"


class Pulse:
    """Beats for every member that has polled lately. Safe to use from several threads."""

    def __init__(self, link: Link, settings: LocalSettings) -> None:
        self._link = link
        self._settings = settings
        self._polled_at: dict[uuid.UUID, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def polled(self, member: uuid.UUID) -> None:
        """Note that a member has polled; its first poll starts the thread."""
        with self._lock:
            self._polled_at[member] = time.monotonic()
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._stop,), name="outbox-pulse", daemon=True)
                self._thread.start()

    def left(self, member: uuid.UUID) -> None:
        """Forget a member; the last one ends the thread."""
        with self._lock:
            self._polled_at.pop(member, None)
            last = not self._polled_at
        if last:
            self.close()

    def close(self) -> None:
        """End the thread and its connection."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None:
            thread.join(STOP_WAIT_S)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._settings.lease_s / BEATS_PER_LEASE):
            try:
                self._beat()
            except BrokerError as error:
                # The members' own polls raise it to somebody; the next beat connects again.
                log.warning("broker.pulse", error=str(error))
        self._link.close()

    def _beat(self) -> None:
        oldest = time.monotonic() - self._settings.poll_interval_max_s
        with self._lock:
            alive = [member for member, at in self._polled_at.items() if at >= oldest]
        if alive:
            with self._link.use() as connection:
                connection.execute(BEAT, [alive])
