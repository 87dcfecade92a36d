"""One batch from events to the store: fold, embed, apply, park what cannot be, remember.

The runner and the rebuild's catch-up both go through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from outbox.errors import RecordsRefused
from outbox.event import Event
from outbox.metrics import EVENTS_APPLIED, STREAMS_PARKED
from projectors.folding import Failure, Folding
from projectors.projection import Projection
from projectors.record import Change, Record, Vector
from projectors.sinks.protocol import Sink

log = structlog.get_logger("outbox.projector")

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

    def apply(self, events: Sequence[Event]) -> int:
        """Bring the store up to these events and return the number of changes given to it.

        1. Fold. Streams whose fold raises are parked (written down) before anything is applied, so that no
           crash can let the checkpoint pass them unseen.
        2. Apply the others' changes. A crash leaves any part of them; the same events come again and the
           version guard sorts it out.
        3. Park the streams whose records the store refuses for good.
        4. Remember the states; only now, since until here the store may not have them.
        """
        folded = self._folding.fold(events)
        for failure in folded.failures:
            self._give_up(failure)
        refused = self._write(folded.changes, events)
        self._folding.keep(replace(folded, states={s: v for s, v in folded.states.items() if s not in refused}))
        self._applied.inc(len(events))
        return len(folded.changes)

    def _write(self, changes: Sequence[Change], events: Sequence[Event]) -> set[str]:
        try:
            self._sink.apply(self._generation, embedded(changes, self._plan.embed))
        except RecordsRefused as error:
            streams = {c.stream: error.reasons[c.key] for c in changes if c.key in error.reasons}
            for event in sorted(events, key=lambda e: -e.version):
                if reason := streams.pop(event.stream, None):
                    self._give_up(Failure(event.stream, event.version, event.type, reason))
            return {c.stream for c in changes if c.key in error.reasons}
        return set()

    def _give_up(self, failure: Failure) -> None:
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
