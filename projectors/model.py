"""The log's own answer to "what should the store hold": every stream folded to its last state, once.

Used by rebuild (to write it) and by verify (to compare it). Memory stays flat: one stream at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from outbox.codec import Registry
from outbox.database import Connection
from outbox.event import Event, category_of
from outbox.log.read import read_below, read_by_stream, read_stream
from outbox.log.statement import VERSION_MAX
from projectors.decoding import Deferring
from projectors.folding import Failure, Forms, State, advance, forms, said
from projectors.pipeline import Plan
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
    events = read_by_stream(
        connection, Deferring(registry), categories=plan.projection.categories, after_stream=after_stream
    )
    for stream, run in groupby(events, key=lambda e: e.stream):
        modelled = _fold_last(plan, stream, run)
        yield modelled or fold_each(plan, stream, read_stream(connection, stream, Deferring(registry)))


def model_some(connection: Connection, plan: Plan, registry: Registry, streams: Sequence[str]) -> Iterator[Modelled]:
    """These streams, read together."""
    events = read_below(connection, dict.fromkeys(streams, VERSION_MAX), Deferring(registry))
    for stream, run in groupby(events, key=lambda e: e.stream):
        history = list(run)
        yield _fold_last(plan, stream, history) or fold_each(plan, stream, history)


def model_of(connection: Connection, plan: Plan, registry: Registry, stream: str) -> Modelled:
    """One stream; it has no records if the projection does not follow its category."""
    if category_of(stream) not in plan.projection.categories:
        return Modelled(stream, 0, ())
    modelled = _fold_last(plan, stream, read_stream(connection, stream, Deferring(registry)))
    return modelled or fold_each(plan, stream, read_stream(connection, stream, Deferring(registry)))


def _fold_last(plan: Plan, stream: str, events: Iterable[Event]) -> Modelled | None:
    """Fold to the last state and make records of that one alone; None if the projection raises anywhere."""
    state = State()
    try:
        for event in events:
            state = advance(plan.projection, state, event)
        return Modelled(stream, state.version, _records(forms(plan.projection, stream, state.value)))
    except Exception:  # noqa: BLE001  # the projection's own code may raise anything; fold_each tells where
        return None


def fold_each(plan: Plan, stream: str, events: Iterable[Event]) -> Modelled:
    """Fold event by event, making the records of each state, and stop at the first that raises.

    This is what a projector does with the stream; its records are those that the store keeps while it is parked.
    """
    done = Modelled(stream, 0, ())
    state, ever = State(), frozenset[str]()
    for event in events:
        try:
            state = advance(plan.projection, state, event)
            made = forms(plan.projection, stream, state.value)
        except Exception as error:  # noqa: BLE001  # likewise
            failure = Failure(stream, event.version, event.type, said(error))
            return Modelled(stream, done.good_version, done.records, failure, ever)
        ever |= made.keys()
        done = Modelled(stream, event.version, _records(made), ever=ever)
    return done


def _records(made: Forms) -> tuple[Record, ...]:
    return tuple(record for record, _ in made.values())
