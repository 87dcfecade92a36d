"""The reference sink: dictionaries that hold exactly what the protocol asks of every store.

It is the model that the other sinks' tests are read beside, and it serves tests of projectors that need a
store without a server. It lives as long as the process: settings ``{"space": NAME}`` name what is shared by
every sink and reader opened under that name (the projection's name if there is none).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from outbox.errors import StoreUnavailable
from projectors.marks import Sum, mark_of, slice_of, summed
from projectors.record import Change, Record, Stored, digest


@dataclass(slots=True)
class Space:
    """What one projection holds, by generation and key. A kept change without a record is a tombstone."""

    generations: dict[str, dict[str, Change]] = field(default_factory=dict)
    serving: str | None = None
    """The generation that ``switch`` pointed at last."""
    lock: threading.RLock = field(default_factory=threading.RLock)


_SPACES: dict[tuple[str, str], Space] = {}
_OPENING = threading.Lock()


def space_of(projection: str, settings: Mapping[str, Any]) -> Space:
    """The space that ``settings`` name, made if it is not there."""
    with _OPENING:
        return _SPACES.setdefault((str(settings.get("space", "")), projection), Space())


class MemorySink:
    """See :class:`projectors.sinks.protocol.Sink`. After :meth:`close` every call raises ``StoreUnavailable``."""

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, space: Space) -> None:
        self._space: Space | None = space

    def prepare(self, generation: str) -> None:
        space = self._opened()
        with space.lock:
            space.generations.setdefault(generation, {})

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        space = self._opened()
        with space.lock:
            held = _generation(space, generation)
            for change in changes:
                kept = held.get(change.key)
                if kept is None or kept.version < change.beats:
                    held[change.key] = change

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        space = self._opened()
        with space.lock:
            held = _generation(space, generation)
            chosen = list(held.values()) if keys is None else [held[key] for key in dict.fromkeys(keys) if key in held]
        for change in chosen:
            if change.record is not None:
                yield Stored(change.key, change.stream, change.version, digest(change.record))

    def sums(self, generation: str) -> Mapping[int, Sum]:
        space = self._opened()
        with space.lock:
            marks = [mark_of(change) for change in _generation(space, generation).values()]
        return summed((m.slice, m.mark) for m in marks if m is not None)

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        return (stored for stored in self.scan(generation) if slice_of(stored.key) in slices)

    def switch(self, generation: str) -> None:
        space = self._opened()
        with space.lock:
            _generation(space, generation)
            space.serving = generation

    def drop(self, generation: str) -> None:
        space = self._opened()
        with space.lock:
            space.generations.pop(generation, None)
            if space.serving == generation:
                space.serving = None

    def close(self) -> None:
        self._space = None

    def _opened(self) -> Space:
        if self._space is None:
            raise StoreUnavailable("the memory store is closed")
        return self._space


def live(space: Space, generation: str) -> list[Record]:
    """The live records of a generation, in the order in which their keys were first seen."""
    with space.lock:
        return [c.record for c in _generation(space, generation).values() if c.record is not None]


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[MemorySink]:
    """A sink on the space that ``settings`` name."""
    sink = MemorySink(space_of(projection, settings))
    try:
        yield sink
    finally:
        sink.close()


def _generation(space: Space, generation: str) -> dict[str, Change]:
    try:
        return space.generations[generation]
    except KeyError:
        raise StoreUnavailable(f"generation {generation!r} has not been prepared") from None
