"""The log's own answer to "what should the store hold": every stream folded to its last state, once.

Used by rebuild (to write it) and by verify (to compare it). Memory stays flat: one stream at a time. What a later
event makes void (:class:`~projectors.projection.Resetting`) is neither decoded nor folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from outbox.codec import Registry
from outbox.database import Connection
from outbox.event import Event, Resets, category_of
from outbox.log.read import read_below, read_by_stream, read_stream
from outbox.log.statement import VERSION_MAX
from projectors.decoding import Deferring
from projectors.folding import Failure, Forms, State, advance, begun, forms, versions
from projectors.pipeline import Plan
from projectors.projection import resets_of
from projectors.record import Change, Record


@dataclass(frozen=True, slots=True)
class Modelled:
    """One stream as the log has it now.

    ``records`` are those of ``good_version``, the last version that could be folded; ``failure`` says why
    that is not the stream's last.
    """

    stream: str
    good_version: int
    records: Sequence[Record]
    failure: Failure | None = None
    ever: frozenset[str] = frozenset()
    """Keys of the records that any state up to then had; only :func:`fold_each` knows them."""

    def changes(self) -> list[Change]:
        """The records as changes of the version they are of."""
        return [Change(r.key, self.stream, self.good_version, r) for r in self.records]


def model(connection: Connection, plan: Plan, registry: Registry, *, after_stream: str = "") -> Iterator[Modelled]:
    """Every stream of the plan's categories behind ``after_stream``, in byte order."""
    resets, reading = resets_of(plan.projection), Deferring(registry)
    events = read_by_stream(
        connection, reading, categories=plan.projection.categories, after_stream=after_stream, resets=resets
    )
    for stream, run in groupby(events, key=lambda e: e.stream):
        modelled = _fold_last(plan, resets, stream, run)
        yield modelled or fold_each(plan, stream, read_stream(connection, stream, reading), resets)


def model_some(connection: Connection, plan: Plan, registry: Registry, streams: Sequence[str]) -> Iterator[Modelled]:
    """These streams, read together."""
    resets, reading = resets_of(plan.projection), Deferring(registry)
    events = read_below(connection, dict.fromkeys(streams, VERSION_MAX), reading, resets=resets)
    for stream, run in groupby(events, key=lambda e: e.stream):
        modelled = _fold_last(plan, resets, stream, run)
        yield modelled or fold_each(plan, stream, read_stream(connection, stream, reading), resets)


def model_of(connection: Connection, plan: Plan, registry: Registry, stream: str) -> Modelled:
    """One stream; it has no records if the projection does not follow its category."""
    if category_of(stream) not in plan.projection.categories:
        return Modelled(stream, 0, ())
    resets, reading = resets_of(plan.projection), Deferring(registry)
    modelled = _fold_last(plan, resets, stream, read_stream(connection, stream, reading, resets=resets))
    return modelled or fold_each(plan, stream, read_stream(connection, stream, reading), resets)


def _fold_last(plan: Plan, resets: Resets | None, stream: str, events: Iterable[Event]) -> Modelled | None:
    """Fold to the last state and make records of that one alone; None if the projection raises anywhere."""
    state = State()
    try:
        for event in events:
            state = advance(plan.projection, begun(resets, state, event), event)
        return Modelled(stream, state.version, _records(forms(plan.projection, stream, state.value)))
    except Exception:  # noqa: BLE001  # the projection's own code may raise anything; fold_each tells where
        return None


def fold_each(plan: Plan, stream: str, events: Iterable[Event], resets: Resets | None = None) -> Modelled:
    """Fold event by event, making the records of each state.

    Without ``resets`` this is what a projector does with the stream: it stops at the first event that raises, and its
    records are those that the store keeps while it is parked. With them, one that raises is passed over if a later one
    makes it void.
    """
    done, failure, ever = Modelled(stream, 0, ()), None, frozenset[str]()
    for state, made in versions(plan.projection, resets, stream, events):
        if isinstance(made, Failure):
            failure = made
        else:
            failure, ever = None, ever | made.keys()
            done = Modelled(stream, state.version, _records(made))
    return replace(done, failure=failure, ever=ever)


def _records(made: Forms) -> tuple[Record, ...]:
    return tuple(record for record, _ in made.values())
