"""Appends what is pending in bounded batches, and settles what other writers get in the way of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outbox.errors import InvalidEvent, VersionConflict
from outbox.ingest.log import Known, Log, Write
from outbox.ingest.options import Options
from outbox.ingest.plan import conflict, delete, is_unchanged, upsert
from outbox.ingest.scan import Failure


@dataclass(frozen=True, slots=True)
class Pending:
    """A change on its way to the log: a file's new state, or (``data`` None) the end of a stream."""

    path: str
    """For people."""
    stream: str
    source: str
    known: Known | None
    """The stream's state when this was decided."""
    digest: str = ""
    data: dict[str, Any] | None = None
    meta: dict[str, str] = field(default_factory=dict)
    weight: int = 0
    """Bytes of source."""

    @property
    def begins(self) -> bool:
        return self.known is None or self.known.deleted

    def write(self) -> Write:
        if self.data is not None:
            return upsert(self.stream, self.known, self.data, self.meta)
        assert self.known is not None, "only a stream that is known can have gone"
        return delete(self.known, self.source, "the file is gone")


@dataclass(slots=True)
class Batch:
    """Collects changes and appends them; counts what came of each. Used by one thread.

    An append is one transaction. Stopped between two, what was appended stays, and the next ingest finds
    it unchanged and goes on from there.
    """

    log: Log
    options: Options
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: list[Failure] = field(default_factory=list)
    _pending: list[Pending] = field(default_factory=list)
    _weight: int = 0

    def add(self, change: Pending) -> None:
        """Take one change; append what has gathered before it if it would not fit with that."""
        full = len(self._pending) >= self.options.batch_streams
        if self._pending and (full or self._weight + change.weight > self.options.batch_bytes):
            self.flush()
        self._pending.append(change)
        self._weight += change.weight

    def flush(self) -> None:
        """Append what is pending. Each change ends up counted or failed."""
        changes, self._pending, self._weight = self._pending, [], 0
        self._append(changes, self.options.attempts)

    def _append(self, changes: Sequence[Pending], attempts: int) -> None:
        """Try. After a conflict each is decided again on what the log holds now. What failed together goes on in
        halves, so that one stream stops no other; only one that stands alone uses up its attempts."""
        if not changes:
            return
        try:
            self.log.append([change.write() for change in changes])
        except VersionConflict:
            again = self._decide_again(changes)
            if len(changes) > 1:
                self._halves(again)
            elif attempts > 1:
                self._append(again, attempts - 1)
            else:
                self.failed += [Failure(c.path, "other writers keep changing its stream: try again") for c in again]
        except InvalidEvent as error:
            if len(changes) > 1:
                self._halves(changes)
            else:
                self.failed.append(Failure(changes[0].path, f"the log refuses it: {error}"))
        else:
            self._count(changes)

    def _halves(self, changes: Sequence[Pending]) -> None:
        middle = len(changes) // 2
        self._append(changes[:middle], self.options.attempts)
        self._append(changes[middle:], self.options.attempts)

    def _decide_again(self, changes: Sequence[Pending]) -> list[Pending]:
        found = self.log.look([change.stream for change in changes])
        again = (self._with(change, found.get(change.stream)) for change in changes)
        return [change for change in again if change is not None]

    def _with(self, change: Pending, known: Known | None) -> Pending | None:
        """The change on top of what is known now; None if nothing is left to do."""
        if change.data is None:
            rewritten = known is None or known.deleted or change.known is None or known.digest != change.known.digest
            return None if rewritten else replace(change, known=known)
        if reason := conflict(known, change.source):
            self.failed.append(Failure(change.path, reason))
            return None
        if is_unchanged(known, change.digest):
            self.unchanged += 1
            return None
        return replace(change, known=known)

    def _count(self, changes: Sequence[Pending]) -> None:
        self.deleted += sum(c.data is None for c in changes)
        self.new += sum(c.data is not None and c.begins for c in changes)
        self.changed += sum(c.data is not None and not c.begins for c in changes)
