"""From events to changes: the state cache, the gap fill, and what must be written so that nothing is left over.

Which keys a batch touches is decided event by event, not by comparing its first and last state. A projector
killed after applying a part of a batch gets the same events again in other batches; a key that existed only
between two of them, or that changed and changed back, may be in the store already and must be written again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from outbox.errors import ProjectionError
from outbox.event import Event
from projectors.projection import Projection
from projectors.record import Change, Record, by_key, canonical

STATES_MAX: Final = 20_000
"""States kept, least recently used go first. One that is not there is folded from the log again."""

Below = Callable[[Mapping[str, int]], Iterable[Event]]
"""Reads, for each stream, its events below a version (:func:`outbox.log.read.read_below`)."""


@dataclass(frozen=True, slots=True)
class State:
    """A stream folded up to ``version``."""

    version: int = 0
    value: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A stream that could not be folded: ``version`` is the first event that is not in ``changes``."""

    stream: str
    version: int
    type: str
    error: str


@dataclass(frozen=True, slots=True)
class Folded:
    """What a batch of events asks of the store."""

    changes: Sequence[Change] = ()
    states: Mapping[str, State] = field(default_factory=dict)
    failures: Sequence[Failure] = ()


class Folding:
    """Folds batches of one projection. Used by one thread."""

    def __init__(self, projection: Projection, below: Below, states_max: int = STATES_MAX) -> None:
        self._projection = projection
        self._below = below
        self._states_max = states_max
        self._states: OrderedDict[str, State] = OrderedDict()

    def fold(self, events: Iterable[Event]) -> Folded:
        """Coalesce the events per stream and fold them. Nothing is remembered until :meth:`keep`.

        Events already folded (the same or a lower version) are passed over; missing ones are read from
        the log. A stream whose fold raises gives a :class:`Failure`; the others are not held up by it.
        """
        streams = self._group(events)
        bases, failures = self._bases(streams)
        changes: list[Change] = []
        states: dict[str, State] = {}
        for stream, batch in streams.items():
            if any(f.stream == stream for f in failures):
                continue
            state, changed, failure = self._stream(stream, bases[stream], batch)
            changes += changed
            states[stream] = state
            if failure is not None:
                failures.append(failure)
        return Folded(changes, states, failures)

    def keep(self, folded: Folded) -> None:
        """Remember the states, once their changes are in the store."""
        for stream, state in folded.states.items():
            self._states[stream] = state
            self._states.move_to_end(stream)
        while len(self._states) > self._states_max:
            self._states.popitem(last=False)

    def forget(self) -> None:
        """Drop every state: after a failure, or when partitions have moved, the log knows better."""
        self._states.clear()

    def _group(self, events: Iterable[Event]) -> dict[str, dict[int, Event]]:
        streams: dict[str, dict[int, Event]] = {}
        for event in events:
            known = self._states.get(event.stream)
            if known is None or event.version > known.version:
                streams.setdefault(event.stream, {})[event.version] = event
        return streams

    def _bases(self, streams: Mapping[str, dict[int, Event]]) -> tuple[dict[str, State], list[Failure]]:
        """Where each stream's fold begins: the cached state, nothing, or (to be read) all below its first event.

        A hole behind a cached state is filled into the batch, since its events are in no store yet. Without a
        cached state everything below the first event delivered is applied already.
        """
        bases: dict[str, State] = {}
        missing: dict[str, int] = {}
        failures: list[Failure] = []
        for stream, batch in streams.items():
            first = min(batch)
            cached = self._states.get(stream)
            bases[stream] = cached or State()
            if any(v not in batch for v in range(bases[stream].version + 1, max(batch))):
                missing[stream] = first if cached is None else max(batch)
            if cached is None and len(batch) < max(batch) - first + 1:
                missing[stream] = max(batch)
        for stream, history in _runs(self._below(missing)) if missing else ():
            batch = streams[stream]
            first = min(batch)
            for event in history:
                if event.version < first and stream not in self._states:
                    try:
                        bases[stream] = State(event.version, self._projection.fold(bases[stream].value, event))
                    except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
                        failures.append(_failure(event, error))
                        break
                elif event.version > bases[stream].version:
                    batch.setdefault(event.version, event)
        return bases, failures

    def _stream(
        self, stream: str, base: State, batch: Mapping[int, Event]
    ) -> tuple[State, list[Change], Failure | None]:
        state, failure = base, None
        touched: set[str] = set()
        current = self._records(stream, base.value)
        for version in sorted(batch):
            event = batch[version]
            try:
                if version != state.version + 1:
                    raise ProjectionError(f"the log has no version {state.version + 1} of it")
                value = self._projection.fold(state.value, event)
                after = self._records(stream, value)
            except Exception as error:  # noqa: BLE001  # the projection's own code may raise anything
                failure = _failure(event, error)
                break
            touched |= _touched(current, after)
            state, current = State(version, value), after
        records = {key: current[key][0] for key in touched if key in current}
        return state, [Change(k, stream, state.version, records.get(k)) for k in sorted(touched)], failure

    def _records(self, stream: str, value: Any) -> dict[str, tuple[Record, bytes]]:
        if value is None:
            return {}
        records = by_key(self._projection.records(stream, value))
        for key in records:
            if key != stream and not key.startswith(stream + "#"):
                raise ProjectionError(f"record key {key!r} is not owned by the stream {stream!r}")
        return {key: (record, canonical(record)) for key, record in records.items()}


def _failure(event: Event, error: Exception) -> Failure:
    return Failure(event.stream, event.version, event.type, f"{type(error).__name__}: {error}")


def _touched(before: Mapping[str, tuple[Record, bytes]], after: Mapping[str, tuple[Record, bytes]]) -> set[str]:
    gone = before.keys() - after.keys()
    return gone | {key for key, (_, form) in after.items() if key not in before or before[key][1] != form}


def _runs(events: Iterable[Event]) -> Iterator[tuple[str, list[Event]]]:
    """The events of each stream, which stand together."""
    run: list[Event] = []
    for event in events:
        if run and run[0].stream != event.stream:
            yield run[0].stream, run
            run = []
        run.append(event)
    if run:
        yield run[0].stream, run
