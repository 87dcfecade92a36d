"""Which records of a store may differ from the log? Those that stand in one of the two alone, found in two passes.

Full: fold the whole log and scan the whole store, keeping 8 bytes a record. Quick: fold the whole log, ask the
store for the sums of its slices (:mod:`projectors.marks`), and scan the slices that differ. Then fold again the few
streams that suspects come from, and scan again for those of the store: now they are named.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from outbox.codec import Registry
from outbox.database import Connection
from projectors import ledger
from projectors.marks import SLICES, UNMARKED, Sum, Sums, mark64, shortened, slice_of
from projectors.model import Modelled, model
from projectors.pipeline import Plan, embedded_records
from projectors.record import Stored, digest
from projectors.sinks.protocol import Sink, Summing

STREAMS_AT_A_TIME: Final = 64
"""Streams folded before their texts are embedded together."""

SLICES_MAX: Final = SLICES // 8
"""Slices read one by one; where more differ, reading all in one go costs little more."""

Progress = Callable[[int], None]
Marks = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Suspects:
    """Keys by stream, out of ``records`` of the log's model. ``slices``: how many were read of the store, None if
    it was read whole; ``why_full``: why, if a quick look was asked for."""

    records: int
    keys: Mapping[str, set[str]]
    slices: int | None = None
    why_full: str = ""


@dataclass(frozen=True, slots=True)
class _Group:
    """Streams folded together: behind ``after``, up to ``last``; the first mark of theirs is at ``start``."""

    start: int
    after: str
    last: str


@dataclass(slots=True)
class _Logged:
    """The log's records: 10 bytes each. Those of parked streams are among them, since stores hold them too."""

    marks: array[int] = field(default_factory=lambda: array("Q"))
    slices: array[int] = field(default_factory=lambda: array("H"))
    groups: list[_Group] = field(default_factory=list)
    parked: int = 0

    @property
    def records(self) -> int:
        """Those of streams that are not parked."""
        return len(self.marks) - self.parked


class Comparison:
    """One look at one generation. Reads; writes nothing."""

    def __init__(self, connection: Connection, plan: Plan, sink: Sink, generation: str, registry: Registry) -> None:
        self._connection = connection
        self._plan = plan
        self._sink = sink
        self._generation = generation
        self._registry = registry
        self._parked = ledger.parked(connection, plan.name, generation)

    def suspects(self, progress: Progress | None = None, *, quick: bool = False) -> Suspects:
        """What may differ; with ``quick`` by what the store says of itself, if it can."""
        logged = self._logged(progress)
        if not quick:
            return self._compared(logged, None)
        # The log first: a slice that is written meanwhile then differs, and is read.
        sums = self._sink.sums(self._generation) if isinstance(self._sink, Summing) else None
        if sums is None:
            return self._compared(logged, None, "its sink keeps no sums")
        if bare := sums.get(UNMARKED):
            return self._compared(logged, None, f"{bare.count} records carry no mark")
        slices = _differing(logged, sums)
        if len(slices) > SLICES_MAX:
            return self._compared(logged, None, f"{len(slices)} of {SLICES} slices differ")
        return self._compared(logged, slices)

    def _logged(self, progress: Progress | None) -> _Logged:
        logged = _Logged()
        for some in _grouped(model(self._connection, self._plan, self._registry)):
            after = logged.groups[-1].last if logged.groups else ""
            logged.groups.append(_Group(len(logged.marks), after, some[-1].stream))
            for stream, key, form in self._digested(some):
                logged.marks.append(mark64(stream, key, form))
                logged.slices.append(slice_of(key))
                logged.parked += stream in self._parked
            if progress is not None:
                progress(len(logged.marks))
        return logged

    def _compared(self, logged: _Logged, slices: set[int] | None, why_full: str = "") -> Suspects:
        """Read the store, or these slices of it, and name what stands in one of the two alone."""
        marks = np.asarray(logged.marks, dtype=np.uint64)
        of = np.asarray(logged.slices, dtype=np.uint16)
        in_log = marks if slices is None else marks[np.isin(of, sorted(slices))]
        held = array("Q", map(stored_mark, self._scan(slices)))
        in_store = np.asarray(held, dtype=np.uint64)
        found: defaultdict[str, set[str]] = defaultdict(set)
        self._name_logged(np.setdiff1d(in_log, in_store), marks, logged.groups, found)
        self._name_stored(np.setdiff1d(in_store, in_log), slices, found)
        keys = {s: keys for s, keys in found.items() if s not in self._parked}
        return Suspects(logged.records, keys, None if slices is None else len(slices), why_full)

    def _scan(self, slices: set[int] | None) -> Iterator[Stored]:
        if slices is None or not isinstance(self._sink, Summing):
            return self._sink.scan(self._generation)
        return self._sink.scan_slices(self._generation, slices) if slices else iter(())

    def _name_logged(
        self, alone: Marks, marks: Marks, groups: Sequence[_Group], found: defaultdict[str, set[str]]
    ) -> None:
        """Fold those groups of streams again in which a mark stands that the store has not."""
        wanted = set(alone.tolist())
        places = np.flatnonzero(np.isin(marks, alone)) if wanted else np.empty(0, dtype=np.int64)
        of = np.unique(np.searchsorted([g.start for g in groups], places, side="right") - 1)
        for group in (groups[n] for n in of.tolist()):
            streams = model(self._connection, self._plan, self._registry, after_stream=group.after)
            for some in _grouped(takewhile(lambda s, last=group.last: s.stream <= last, streams)):  # type: ignore[misc]
                for stream, key, form in self._digested(some):
                    if mark64(stream, key, form) in wanted:
                        found[stream].add(key)

    def _name_stored(self, alone: Marks, slices: set[int] | None, found: defaultdict[str, set[str]]) -> None:
        wanted = set(alone.tolist())
        for stored in self._scan(slices) if wanted else ():
            if stored_mark(stored) in wanted:
                found[_owner(stored)].add(stored.key)

    def _digested(self, streams: Sequence[Modelled]) -> Iterator[tuple[str, str, bytes]]:
        """Stream, key and digest of each record."""
        owners = [s.stream for s in streams for _ in s.records]
        records = embedded_records((r for s in streams for r in s.records), self._plan.embed)
        return ((owner, r.key, digest(r)) for owner, r in zip(owners, records, strict=True))


def stored_mark(stored: Stored) -> int:
    """The mark of what a store really holds."""
    return mark64(stored.stream, stored.key, stored.digest)


def _differing(logged: _Logged, sums: Sums) -> set[int]:
    """The slices whose count or sum in the store is not the log's."""
    of = np.asarray(logged.slices, dtype=np.int64)
    short = np.asarray(logged.marks, dtype=np.uint64) & np.uint64(shortened(-1))
    counts = np.bincount(of, minlength=SLICES)
    totals = np.zeros(SLICES, dtype=np.uint64)
    np.add.at(totals, of, short)
    ours = {n: Sum(int(counts[n]), int(totals[n])) for n in range(SLICES)}
    none: Any = Sum(0, 0)
    return {n for n in ours.keys() | sums.keys() if ours.get(n, none) != sums.get(n, none)}


def _owner(stored: Stored) -> str:
    """The stream that a key belongs to by its form; what the store says of it may be what is wrong."""
    whole = stored.key == stored.stream or stored.key.startswith(stored.stream + "#")
    return stored.stream if whole else stored.key.partition("#")[0]


def _grouped(streams: Iterator[Modelled]) -> Iterator[list[Modelled]]:
    while some := list(islice(streams, STREAMS_AT_A_TIME)):
        yield some
