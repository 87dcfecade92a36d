"""One batch from events to the store: fold, embed, apply, park what cannot be, remember.

The runner and the rebuild's catch-up both go through here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that is folded and not written: ``changes`` are all that it asks of the store, with their vectors."""

    events: int
    folded: Sequence[Folded]
    changes: Sequence[Change]

    def without(self, streams: Container[str]) -> Ready:
        """The same batch without some of its streams."""
        folded = [one for one in self.folded if one.stream not in streams]
        return Ready(self.events, folded, [c for c in self.changes if c.stream not in streams])


class Pipeline:
    """Applies events to one generation. Used by one thread, but for :meth:`write`, which any one thread may call."""

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

        1. Fold. Nothing is remembered yet.
        2. Apply the changes, of failing streams those up to their last good event. A crash leaves any part
           of them; the same events come again and the version guard sorts it out.
        3. Park (write down) the streams that failed and those whose records the store refuses. A crash before
           it: they come again and fail again. The caller's checkpoint comes after, so none is passed unseen.
        4. Remember the states; only now, since until here the store may not have them.
        """
        ready = self.fold(events)
        self.finish(ready, self.write(ready))
        return len(ready.changes)

    def apply_whole(self, stream: str, events: Iterable[Event]) -> None:
        """Bring the store up to a stream's events from the first on, at an equal version too.

        In one write, of what the last state comes to: a record that the store refuses on the way does not matter.
        """
        folded = self._folding.whole(stream, events)
        changes = embedded([replace(c, repair=True) for c in folded.changes], self._plan.embed)
        ready = Ready(folded.state.version, [folded], changes)
        self.finish(ready, self.write(ready))

    def fold(self, events: Sequence[Event], *, after: Ready | None = None) -> Ready:
        """Step 1 of :meth:`apply`. ``after``: the batch before this one, if it is not written yet."""
        folded = self._folding.fold(events, after.folded if after else ())
        changes = [c for one in folded for c in one.changes]
        return Ready(len(events), folded, embedded(changes, self._plan.embed))

    def write(self, ready: Ready) -> dict[str, str]:
        """Step 2 of :meth:`apply`. Returns the store's reason for each stream of which it refuses a record."""
        try:
            self._sink.apply(self._generation, ready.changes)
        except RecordsRefused as error:
            return {c.stream: f"{c.key}: {error.reasons[c.key]}" for c in ready.changes if c.key in error.reasons}
        return {}

    def finish(self, ready: Ready, refused: Mapping[str, str]) -> bool:
        """Steps 3 and 4 of :meth:`apply`. Returns whether a stream was parked: what was folded after this batch, and
        before this call, has gone on with it and is to be folded anew."""
        stuck = [self._park_if_stuck(one, refused.get(one.stream)) for one in ready.folded]
        self._folding.keep(one for one in ready.folded if one.stream not in refused)
        self._applied.inc(ready.events)
        return any(stuck)

    def _park_if_stuck(self, one: Folded, reason: str | None) -> bool:
        failure = one.failure
        if reason is not None and one.first is not None:
            # Which of the batch's events made the refused record is not known: none of them counts as applied,
            # and no type is named.
            failure = Failure(one.stream, one.first.version, "", reason)
        if failure is None:
            return False
        log.warning(
            "parked", projector=self._plan.name, stream=failure.stream, version=failure.version, error=failure.error
        )
        self._park(failure)
        self._parked.inc()
        return True


def embedded(changes: Sequence[Change], embed: Embed | None) -> list[Change]:
    """The changes, with vectors whose embedding is missing made from their texts."""
    result = list(changes)
    bare = [(i, c.record) for i, c in enumerate(changes) if isinstance(c.record, Vector) and c.record.embedding is None]
    if bare and embed is not None:
        for (i, record), row in zip(bare, embed([r.text for _, r in bare]), strict=True):
            result[i] = replace(changes[i], record=replace(record, embedding=row), form=None)
    return result


def embedded_records(records: Iterable[Record], embed: Embed | None) -> list[Record]:
    """The same for records without changes round them."""
    return [c.record for c in embedded([Change(r.key, "", 0, r) for r in records], embed) if c.record is not None]
