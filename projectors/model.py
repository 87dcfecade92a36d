"""The log's own answer to "what should the store hold": every stream folded to its last state, once.

Used by rebuild (to write it) and by verify (to compare it). Memory stays flat: one stream at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import ProjectionError
from outbox.event import Event
from outbox.log.read import read_by_stream, read_stream
from projectors.pipeline import Plan
from projectors.record import Change, Record


@dataclass(frozen=True, slots=True)
class Modelled:
    """One stream as the log has it now. ``error``: its fold raised at ``version`` (then no records)."""

    stream: str
    version: int
    type: str
    records: Sequence[Record]
    error: str | None = None

    def changes(self) -> list[Change]:
        """The records as changes of the stream's version."""
        return [Change(r.key, self.stream, self.version, r) for r in self.records]


def model(connection: Connection, plan: Plan, registry: Registry, *, after_stream: str = "") -> Iterator[Modelled]:
    """Every stream of the plan's categories behind ``after_stream``, in byte order."""
    events = read_by_stream(connection, registry, categories=plan.projection.categories, after_stream=after_stream)
    for stream, run in groupby(events, key=lambda e: e.stream):
        yield fold_stream(plan, stream, run)


def model_of(connection: Connection, plan: Plan, registry: Registry, stream: str) -> Modelled:
    """One stream."""
    return fold_stream(plan, stream, read_stream(connection, stream, registry))


def fold_stream(plan: Plan, stream: str, events: Iterable[Event]) -> Modelled:
    """Fold one stream's events to its last state and its records."""
    done = Modelled(stream, 0, "", ())
    value: Any = None
    for event in events:
        done = replace(done, version=event.version, type=event.type)
        try:
            value = plan.projection.fold(value, event)
        except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
            return replace(done, error=f"{type(error).__name__}: {error}")
    if value is None:
        return done
    try:
        records = {r.key: r for r in plan.projection.records(stream, value)}
        stray = next((k for k in records if k != stream and not k.startswith(stream + "#")), None)
        if stray is not None:
            raise ProjectionError(f"record key {stray!r} is not owned by the stream")
    except Exception as error:  # noqa: BLE001  # likewise
        return replace(done, error=f"{type(error).__name__}: {error}")
    return replace(done, records=tuple(records.values()))
