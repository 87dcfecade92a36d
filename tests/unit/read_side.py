"""What tests of the read side share: events without a log, a log in memory, and a projection of many shapes."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from outbox.event import Event
from projectors.record import Change, Record, Row

AT = datetime(2026, 1, 1, tzinfo=UTC)


def event(stream: str, version: int, data: Mapping[str, Any] | None = None, type: str = "thing.set") -> Event:
    return Event(stream, version, type, {} if data is None else data, uuid.UUID(int=version), version, AT, {})


class Log:
    """Streams in memory, and how often they were read."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Event]] = defaultdict(list)
        self.reads: list[Mapping[str, int]] = []

    def add(self, stream: str, *datas: Mapping[str, Any], type: str = "thing.set") -> list[Event]:
        held = self.streams[stream]
        new = [event(stream, len(held) + n + 1, data, type) for n, data in enumerate(datas)]
        held += new
        return new

    def below(self, wanted: Mapping[str, int]) -> Iterator[Event]:
        self.reads.append(dict(wanted))
        for stream, version in sorted(wanted.items()):
            yield from [e for e in self.streams[stream] if e.version < version]

    def all(self) -> list[Event]:
        return [e for stream in sorted(self.streams) for e in self.streams[stream]]


class Things:
    """State: part key -> value. An event's data puts parts, ``None`` removes one; ``{"!": ...}`` fails as told."""

    categories = ("thing",)

    def fold(self, state: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "thing.deleted":
            return None
        if event.data.get("!") == "fold":
            raise ValueError(f"cannot fold {event.version}")
        return {k: v for k, v in {**(state or {}), **event.data}.items() if v is not None}

    def records(self, stream: str, state: dict[str, Any]) -> Iterable[Record]:
        if state.get("!") == "records":
            raise ValueError("no records of this")
        for part, value in state.items():
            yield Row("elsewhere" if part == "stray" else f"{stream}#{part}", {"value": value})


def model(log: Log, projection: Any = None) -> dict[str, Record]:
    """What a store should hold, folded as plainly as can be."""
    projection = projection or Things()
    held: dict[str, Record] = {}
    for stream, events in log.streams.items():
        state, good = None, {}
        for one in events:
            try:
                state = projection.fold(state, one)
                good = {} if state is None else {r.key: r for r in projection.records(stream, state)}
            except ValueError:
                break
        held |= good
    return held


def live(changes: Mapping[str, Change]) -> dict[str, Record]:
    """The live records of a memory store's generation."""
    return {c.key: c.record for c in changes.values() if c.record is not None}
