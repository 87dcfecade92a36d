"""The ingest's log in memory: the rules of the real one (exact versions, all or nothing, strict schemas)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from outbox.codec import default_registry
from outbox.errors import VersionConflict
from outbox.event import NewEvent, check_stream
from outbox.ingest import Known, Write


class MemoryLog:
    def __init__(self) -> None:
        self.streams: dict[str, list[NewEvent]] = {}
        self.batches: list[list[Write]] = []
        self.before_append: Callable[[Sequence[Write]], None] | None = None

    def known(self, source: str) -> list[Known]:
        return [k for k in map(self._known, self.streams) if k.source == source]

    def look(self, streams: Sequence[str]) -> Mapping[str, Known]:
        return {s: self._known(s) for s in streams if s in self.streams}

    def append(self, writes: Sequence[Write]) -> None:
        if self.before_append is not None:
            self.before_append(writes)
        assert len({w.stream for w in writes}) == len(writes)
        for write in writes:
            default_registry().encode(write.event.type, write.event.data)
            check_stream(write.stream)
            actual = len(self.streams.get(write.stream, ()))
            if actual != write.expected:
                raise VersionConflict(write.stream, str(write.expected), actual)
        for write in writes:
            self.streams.setdefault(write.stream, []).append(write.event)
        self.batches.append(list(writes))

    def write(self, stream: str, event: NewEvent) -> None:
        """As another producer would, without asking for a version."""
        self.streams.setdefault(stream, []).append(event)

    def types(self, stream: str) -> list[str]:
        return [event.type.removeprefix("entity.") for event in self.streams.get(stream, [])]

    def last(self, stream: str) -> NewEvent:
        return self.streams[stream][-1]

    def _known(self, stream: str) -> Known:
        events = self.streams[stream]
        meta = events[-1].meta
        deleted = events[-1].type == "entity.deleted"
        return Known(stream, len(events), meta.get("digest"), deleted, meta.get("source"))
