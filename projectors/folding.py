"""From events to changes: the state cache, the gap fill, and what must be written so that nothing is left over.

Which keys a batch touches is decided event by event, not by comparing its first and last state. A projector
killed after applying a part of a batch gets the same events again in other batches; a key that existed only
between two of them, or that changed and changed back, may be in the store already and must be written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Final, NamedTuple

from outbox.errors import ProjectionError
from outbox.event import Event, Resets
from projectors.projection import Projection, resets_of
from projectors.record import Change, Record, by_key, stated

STATES_MAX: Final = 20_000
"""States kept, least recently used go first. One that is not there is folded from the log again."""

Below = Callable[[Mapping[str, int]], Iterable[Event]]
"""Reads, for each stream, its events below a version (:func:`outbox.log.read.read_below`)."""

Batch = dict[int, Event]
"""Events of one stream by version."""

Forms = Mapping[str, tuple[Record, bytes]]
"""Records with their canonical forms, by key."""


class State(NamedTuple):
    """A stream folded up to ``version``."""

    version: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A stream that cannot go on; ``version`` is its first event that is not in the store.

    ``type`` is that event's if it is the one to blame, "" if the store refuses what the events come to.
    """

    stream: str
    version: int
    type: str
    error: str


@dataclass(frozen=True, slots=True)
class Folded:
    """What a batch asks of the store for one stream.

    ``first`` is the first event folded (None: there was none), ``failure`` why it ends before the last.
    """

    stream: str
    state: State
    changes: Sequence[Change] = ()
    first: Event | None = None
    failure: Failure | None = None


def begun(resets: Resets | None, state: State, event: Event) -> State:
    """``state``, or the empty one right before an event behind which nothing that came before matters: what such a one
    makes void need not have been read (:func:`outbox.log.read.without_void`)."""
    anew = resets is not None and resets(event.stream, event.version, event.type)
    return State(event.version - 1) if anew else state


def advance(projection: Projection, state: State, event: Event) -> State:
    """The state one event further.

    Raises :class:`~outbox.errors.ProjectionError` if the event is not the next one, and whatever the
    projection's own code raises.
    """
    if event.version != state.version + 1:
        raise ProjectionError(f"the log has no version {state.version + 1} of it")
    return State(event.version, projection.fold(state.value, event))


def forms(projection: Projection, stream: str, value: Any) -> Forms:
    """The records of a state.

    Raises :class:`~outbox.errors.ProjectionError` for a key of another stream, and whatever the projection's
    own code raises or :func:`~projectors.record.stated` raises for a record.
    """
    records = {} if value is None else by_key(projection.records(stream, value))
    for key in records:
        if key != stream and not key.startswith(stream + "#"):
            raise ProjectionError(f"record key {key!r} is not owned by the stream {stream!r}")
    return {key: (record, stated(record)) for key, record in records.items()}


def versions(
    projection: Projection, resets: Resets | None, stream: str, events: Iterable[Event]
) -> Iterator[tuple[State, Forms | Failure]]:
    """Each version's state and records, or why it has none. Behind such a one come those that begin anew, if any."""
    state, failed = State(), False
    for event in events:
        base = begun(resets, state, event)
        if failed and base is state:
            continue
        try:
            state = advance(projection, base, event)
            made = forms(projection, stream, state.value)
        except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
            failed = True
            yield state, _failure(event, error)
            if resets is None:
                return
        else:
            failed = False
            yield state, made


def touched(before: Forms, after: Forms) -> set[str]:
    """The keys whose record is new, other or gone."""
    gone = before.keys() - after.keys()
    return gone | {key for key, (_, form) in after.items() if key not in before or before[key][1] != form}


def said(error: Exception) -> str:
    """An error of a projection's own code, as it stands in a dead letter."""
    return f"{type(error).__name__}: {error}"


class Folding:
    """Folds batches of one projection. Used by one thread."""

    def __init__(self, projection: Projection, below: Below, states_max: int = STATES_MAX) -> None:
        self._projection = projection
        self._resets = resets_of(projection)
        self._below = below
        self._states_max = states_max
        self._states: OrderedDict[str, State] = OrderedDict()
        self._before: Mapping[str, State] = {}
        """States of the batch before the one being folded, which is not in the store yet."""

    def fold(self, events: Iterable[Event], before: Iterable[Folded] = ()) -> list[Folded]:
        """Coalesce the events per stream and fold them. Nothing is remembered until :meth:`keep`.

        ``before``: the batch before this one, if it is not kept yet; this one goes on where it ends.
        Events already folded (the same or a lower version) are passed over; missing ones are read from
        the log. A stream whose fold raises gives a :class:`Failure`; the others are not held up by it.
        """
        self._before = {one.stream: one.state for one in before if one.first is not None}
        batches = self._group(events)
        bases = {stream: self._known(stream) or State() for stream in batches}
        failures = self._fill(batches, bases)
        return [
            self._stream(stream, bases[stream], batch)
            if stream not in failures
            else Folded(stream, bases[stream], failure=failures[stream])
            for stream, batch in batches.items()
        ]

    def whole(self, stream: str, events: Iterable[Event]) -> Folded:
        """One stream from its beginning, whatever is remembered of it: each key that any of its states had is written
        as the last one has it. What fails is no failure if a later event makes it void."""
        state, failure = State(), None
        current: Forms = {}
        changed: set[str] = set()
        coming = iter(events)
        first = next(coming, None)
        for after, made in versions(self._projection, self._resets, stream, chain([first] if first else (), coming)):
            if isinstance(made, Failure):
                failure = failure or made
                continue
            changed |= touched(current, made)
            state, current, failure = after, made, None
        changes = [_change(key, stream, state.version, current) for key in sorted(changed)]
        return Folded(stream, state, changes, first, failure)

    def keep(self, folded: Iterable[Folded]) -> None:
        """Remember the states, once their changes are in the store."""
        for one in folded:
            if one.first is not None:
                self._states[one.stream] = one.state
                self._states.move_to_end(one.stream)
        while len(self._states) > self._states_max:
            self._states.popitem(last=False)

    def forget(self, stream: str) -> None:
        """Drop one stream's state, so that all of it is folded and written again."""
        self._states.pop(stream, None)

    def _known(self, stream: str) -> State | None:
        return self._before.get(stream) or self._states.get(stream)

    def _group(self, events: Iterable[Event]) -> dict[str, Batch]:
        batches: dict[str, Batch] = {}
        for event in events:
            known = self._known(event.stream)
            if known is None or event.version > known.version:
                batches.setdefault(event.stream, {})[event.version] = event
        return batches

    def _fill(self, batches: Mapping[str, Batch], bases: dict[str, State]) -> dict[str, Failure]:
        """Read what is missing: into ``bases`` what lies below a batch, into the batch what lies within.

        A hole behind a cached state is filled into the batch, since its events may be in no store yet. Without
        a cached state everything below the first event delivered is applied: the checkpoint has passed it. What fails
        there is no failure if a later event makes it void.
        """
        missing = {s: below for s, batch in batches.items() if (below := self._missing_below(s, batch))}
        failures: dict[str, Failure] = {}
        for stream, history in groupby(self._below(missing), key=lambda e: e.stream) if missing else ():
            batch = batches[stream]
            first = min(batch) if self._known(stream) is None else 0
            for event in history:
                if event.version >= first:
                    if event.version > bases[stream].version:
                        batch.setdefault(event.version, event)
                    continue
                base = begun(self._resets, bases[stream], event)
                if stream in failures and base is bases[stream]:
                    continue
                failures.pop(stream, None)
                try:
                    bases[stream] = advance(self._projection, base, event)
                except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
                    failures[stream] = _failure(event, error)
        return failures

    def _missing_below(self, stream: str, batch: Batch) -> int:
        """The version below which the log must be read; 0 if nothing is missing."""
        cached, first, last = self._known(stream), min(batch), max(batch)
        begin = first if cached is None else cached.version + 1
        if len(batch) < last - begin + 1:
            return last
        return first if cached is None and first > 1 else 0

    def _stream(self, stream: str, base: State, batch: Batch) -> Folded:
        state, failure = base, None
        changed: set[str] = set()
        first = event = batch[min(batch)]
        current: Forms = {}
        try:
            current = forms(self._projection, stream, base.value)
            for version in sorted(batch):
                event = batch[version]
                after = advance(self._projection, state, event)
                made = forms(self._projection, stream, after.value)
                changed |= touched(current, made)
                state, current = after, made
        except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
            failure = _failure(event, error)
        changes = [_change(key, stream, state.version, current) for key in sorted(changed)]
        return Folded(stream, state, changes, first, failure)


def _change(key: str, stream: str, version: int, now: Forms) -> Change:
    record, form = now.get(key, (None, None))
    return Change(key, stream, version, record, form=form)


def _failure(event: Event, error: Exception) -> Failure:
    return Failure(event.stream, event.version, event.type, said(error))
