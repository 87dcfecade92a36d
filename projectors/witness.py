"""What a projector knows of the log by itself: the newest event that its store was given.

PostgreSQL cannot tell that it was taken back to an earlier moment; whoever has seen one of the events that it
lost can. The newest one is kept in memory, across all reconnects, and in the embedded mode in a small file
beside the stores.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from outbox.broker.protocol import Delivery
from outbox.database import Connection
from outbox.envelope import version_in
from outbox.errors import InvalidEvent
from outbox.log.identity import LOST, Identity, halt, unknown_event, went_back

WRITE_EVERY_S: Final = 1.0
"""A file a second costs nothing; a restore to within the last second before a kill can go unseen in it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An event that a store was given, and the log it is of."""

    database: str
    log_id: uuid.UUID
    position: int
    id: uuid.UUID


class Witness:
    """Holds the mark of one projector. ``path``: where it outlives the process. Used by one thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._mark = _read(path)
        self._written_at = -WRITE_EVERY_S
        self._dirty = False

    @property
    def mark(self) -> Mark | None:
        return self._mark

    def note(self, database: str, identity: Identity, deliveries: Sequence[Delivery]) -> None:
        """The store holds these."""
        newest = max((found for d in deliveries if (found := _found(d)) is not None), default=None)
        if newest is None or (self._mark is not None and self._mark.position >= newest[0]):
            return
        self._mark = Mark(database, identity.log_id, *newest)
        self._dirty = True
        if time.monotonic() - self._written_at > WRITE_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write the mark down, if it has moved. Not flushed: a kernel that falls takes the stores' last writes too."""
        if self._path is None or self._mark is None or not self._dirty:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: a projector that was stopped, replaced and continued may write beside its replacement.
        part = self._path.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(orjson.dumps(self._mark))
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)
        self._written_at, self._dirty = time.monotonic(), False

    def check(self, connection: Connection, identity: Identity) -> bool:
        """Whether the log was seen to have the marked event; False if there is no mark of this database.

        Raises :class:`~outbox.errors.LogWentBack` if it has not, and writes that down for all.
        """
        mark = self._mark
        if mark is None or mark.database != connection.info.dbname:
            return False
        if mark.log_id != identity.log_id:
            raise went_back(f"the store follows log {mark.log_id} and this is log {identity.log_id}")
        if unknown_event(connection, [mark.id]) is not None:
            raise halt(connection, f"a store holds event {mark.id} of position {mark.position}, {LOST}")
        return True


def forget_marks(folder: Path) -> None:
    """Remove the files of a folder: the stores were brought back to the log."""
    for path in [*folder.glob("*.json"), *folder.glob("*.part")]:
        path.unlink(missing_ok=True)


def _found(delivery: Delivery) -> tuple[int, uuid.UUID] | None:
    """Position and id; None if it is no event."""
    try:
        version_in(delivery)
        return int(delivery.headers["position"]), uuid.UUID(delivery.headers["id"].decode())
    except (InvalidEvent, KeyError, ValueError):
        return None


def _read(path: Path | None) -> Mark | None:
    """The mark of a file; None if there is none, or nothing that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        found = orjson.loads(path.read_bytes())
        return Mark(found["database"], uuid.UUID(found["log_id"]), int(found["position"]), uuid.UUID(found["id"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
