"""A service that uses the outbox: in one transaction it changes a table of its own and appends events.

Runs as a process of its own until SIGTERM. Its choices come from a seed; what it knows of each append goes into its
history. An append whose end it cannot know is either tried again with the same ids or left as it is.
"""

from __future__ import annotations

import random
import signal
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from outbox.codec import Registry
from outbox.errors import OutboxError, VersionConflict
from outbox.event import NewEvent
from outbox.log.append import append
from tests.faults.history import Recorder, Tried

PARTS = 6
PAUSE_S = 0.006
CONNECT_TIMEOUT_S = 2
STATEMENT_TIMEOUT_MS = 5_000


@dataclass(frozen=True)
class Assignment:
    """What one writer is to do. Several writers share the streams."""

    dsn: str
    seed: int
    history: str
    streams: int = 12
    schemas: str = ""


class RolledBack(Exception):
    """The service changed its mind."""


def write(assignment: Assignment) -> None:
    """Append until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=ended.set).start())
    with Path(assignment.history).open("a", encoding="utf-8") as file:
        Writer(assignment, Recorder(file)).run(ended)


class Writer:
    """One thread, one connection, opened again when it is lost."""

    def __init__(self, assignment: Assignment, recorder: Recorder) -> None:
        self._assignment = assignment
        self._source = random.Random(assignment.seed)
        self._recorder = recorder
        self._registry = Registry.load(*([Path(assignment.schemas)] if assignment.schemas else []))
        self._connection: psycopg.Connection[Any] | None = None

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(PAUSE_S):
            batches = [self._batch() for _ in range(self._source.choice((1, 1, 2)))]
            if len({batch[0].stream for batch in batches}) == len(batches):
                self._do(sorted(batches, key=lambda b: b[0].stream), self._source.random(), ended)

    def _batch(self) -> list[Tried]:
        stream = f"thing-{self._source.randrange(self._assignment.streams)}"
        return [self._event(stream) for _ in range(self._source.choice((1, 1, 2, 4)))]

    def _event(self, stream: str) -> Tried:
        id_ = str(uuid.UUID(int=self._source.getrandbits(128), version=4))
        if self._source.random() < 0.12:
            return Tried(id_, stream, "entity.deleted", {})
        names = self._source.sample(range(PARTS), self._source.randrange(1, 3))
        values = {f"p{n}": self._source.choice((None, *range(50))) for n in names}
        return Tried(id_, stream, "entity.patched", {"properties": values})

    def _do(self, batches: Sequence[Sequence[Tried]], chance: float, ended: threading.Event) -> None:
        """One transaction to its end, tried again (or not) as long as its end is unknown."""
        self._recorder.trying(one for batch in batches for one in batch)
        ids = [one.id for batch in batches for one in batch]
        uncertain = False
        while True:
            sent = False
            try:
                connection = self._opened()
                sent = True
                self._transact(connection, batches, chance)
            except (VersionConflict, RolledBack, psycopg.errors.DeadlockDetected):
                self._close()
                self._recorder.ended("unknown" if uncertain else "failed", ids)
            except (psycopg.Error, OutboxError):
                self._close()
                uncertain = uncertain or sent
                again = chance > 0.5 or not sent
                if again and not ended.wait(0.1):
                    continue
                self._recorder.ended("unknown" if uncertain else "failed", ids)
            else:
                self._recorder.ended("ok", ids)
            return

    def _transact(self, connection: psycopg.Connection[Any], batches: Sequence[Sequence[Tried]], chance: float) -> None:
        try:
            for batch in batches:
                events = [NewEvent(one.type, one.data, uuid.UUID(one.id)) for one in batch]
                expected: Any = 1_000_000 if chance < 0.03 else "any"
                append(connection, batch[0].stream, events, expected=expected, registry=self._registry)
                connection.cursor().executemany(
                    "INSERT INTO business (id) VALUES (%s) ON CONFLICT DO NOTHING", [[e.id] for e in batch]
                )
            if chance < 0.08:
                raise RolledBack
        except (VersionConflict, RolledBack):
            connection.rollback()
            raise
        connection.commit()

    def _opened(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._assignment.dsn,
                connect_timeout=CONNECT_TIMEOUT_S,
                options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            )
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
