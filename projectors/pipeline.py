"""One batch from events to the store: fold, embed, apply, park what cannot be, remember.

The runner and the rebuild's catch-up both go through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outbox.errors import RecordsRefused
from outbox.event import Event
from outbox.logs import logger
from outbox.metrics import EVENTS_APPLIED, STREAMS_PARKED
from projectors.folding import Failure, Folded, Folding
from projectors.projection import Projection
from projectors.record import Change, Record, Vector
from projectors.sinks.protocol import Sink

log = logger("outbox.projector")

Embed = Callable[[Sequence[str]], Any]
"""Texts to an array of float32 rows."""

Park = Callable[[Failure], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A projector: one projection, kept in one store. ``topics`` carry its categories."""

    name: str
    store: str
    projection: Projection
    topics: tuple[str, ...]
    embed: Embed | None = None


class Pipeline:
    """Applies events to one generation. Used by one thread."""

    def __init__(self, plan: Plan, sink: Sink, generation: str, folding: Folding, park: Park) -> None:
        self._plan = plan
        self._sink = sink
        self._generation = generation
        self._folding = folding
        self._park = park
        self._applied = EVENTS_APPLIED.labels(plan.name)
        self._parked = STREAMS_PARKED.labels(plan.name)

    def apply(self, events: Sequence[Event], *, repair: bool = False) -> int:
        """Bring the store up to these events and return the number of changes given to it.

        1. Fold. Nothing is remembered yet.
        2. Apply the changes, of failing streams those up to their last good event. A crash leaves any part
           of them; the same events come again and the version guard sorts it out.
        3. Park (write down) the streams that failed and those whose records the store refuses. A crash before
           it: they come again and fail again. The caller's checkpoint comes after, so none is passed unseen.
        4. Remember the states; only now, since until here the store may not have them.

        ``repair``: the changes apply at an equal version too.
        """
        folded = self._folding.fold(events)
        changes = [replace(c, repair=repair) if repair else c for one in folded for c in one.changes]
        refused = self._write(changes)
        for one in folded:
            self._park_if_stuck(one, refused.get(one.stream))
        self._folding.keep(one for one in folded if one.stream not in refused)
        self._applied.inc(len(events))
        return len(changes)

    def _write(self, changes: Sequence[Change]) -> dict[str, str]:
        """Apply; returns the store's reason for each stream of which it refuses a record."""
        try:
            self._sink.apply(self._generation, embedded(changes, self._plan.embed))
        except RecordsRefused as error:
            return {c.stream: f"{c.key}: {error.reasons[c.key]}" for c in changes if c.key in error.reasons}
        return {}

    def _park_if_stuck(self, one: Folded, reason: str | None) -> None:
        failure = one.failure
        if reason is not None and one.first is not None:
            # Which of the batch's events made the refused record is not known: none of them counts as applied,
            # and no type is named.
            failure = Failure(one.stream, one.first.version, "", reason)
        if failure is None:
            return
        log.warning(
            "parked", projector=self._plan.name, stream=failure.stream, version=failure.version, error=failure.error
        )
        self._park(failure)
        self._parked.inc()


def embedded(changes: Sequence[Change], embed: Embed | None) -> list[Change]:
    """The changes, with vectors whose embedding is missing made from their texts."""
    result = list(changes)
    bare = [(i, c.record) for i, c in enumerate(changes) if isinstance(c.record, Vector) and c.record.embedding is None]
    if bare and embed is not None:
        for (i, record), row in zip(bare, embed([r.text for _, r in bare]), strict=True):
            result[i] = replace(changes[i], record=replace(record, embedding=row))
    return result


def embedded_records(records: Iterable[Record], embed: Embed | None) -> list[Record]:
    """The same for records without changes round them."""
    return [c.record for c in embedded([Change(r.key, "", 0, r) for r in records], embed) if c.record is not None]
