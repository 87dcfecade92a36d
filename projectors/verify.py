"""Verify: is the store equal to the log? Each record that is not is named. Repair writes just those.

1. Fold the whole log and scan the whole store once, keeping 8 bytes a record: the digests that stand in one
   of the two alone are suspects. With nothing in flight that is the end of it.
2. Fold again the few streams that suspects come from, and scan again for those of the store: now they are
   named.
3. Events in flight look like differences. So wait until what is committed by now is applied, and look at the
   suspects once more: a record is right if it is as the log had it at any version from then on.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, Final, Literal

import numpy as np

from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import WaitTimeout
from outbox.event import category_of
from outbox.log.read import read_stream
from projectors import ledger
from projectors.decoding import Deferring
from projectors.folding import State, advance, forms
from projectors.model import Modelled, model, model_of
from projectors.pipeline import Plan, embedded, embedded_records
from projectors.record import Change, Record, Stored, digest
from projectors.sinks.protocol import Sink
from projectors.skipping import skipping
from projectors.wait import wait_for_generation

Kind = Literal["missing", "stale", "extra", "different"]
KINDS: Final[tuple[Kind, ...]] = ("missing", "stale", "extra", "different")

STREAMS_AT_A_TIME: Final = 64
"""Streams folded before their texts are embedded together."""

KEYS_AT_A_TIME: Final = 500
"""Records asked of the store by key, or repaired, together."""

SETTLE_S: Final = 30.0
"""How long what is in flight may take; after it a record that differs is named, whatever the reason."""

UNRELAYED_S: Final = 5.0
"""The same while no relay leads: a stand-by would have taken over by then."""

NAMED_MAX: Final = 10_000
"""Differences named; more than that is a rebuild's work, and they are still counted."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """One record that is not as the log says. ``version``: what it takes to put it right."""

    key: str
    stream: str
    kind: Kind
    version: int


@dataclass(frozen=True, slots=True)
class Report:
    """What verify found. ``parked``: streams left out because they are dead letters.

    ``differences`` names at most :data:`NAMED_MAX`; ``counts`` has them all.
    """

    projector: str
    store: str
    generation: str
    records: int
    differences: Sequence[Difference]
    counts: Mapping[Kind, int]
    parked: Sequence[str]
    seconds: float

    def count(self, kind: Kind) -> int:
        return self.counts.get(kind, 0)

    @property
    def clean(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        return {"records": self.records, **{k: self.count(k) for k in KINDS}, "parked": len(self.parked)}


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What the log says of one key. ``digests``: what the store may hold (None: nothing) from some version on."""

    digests: set[bytes | None]
    touched: int
    """The last version that changed it."""
    version: int
    """The stream's last version that could be folded."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Streams folded together: behind ``after``, up to ``last``; the first mark of theirs is at ``start``."""

    start: int
    after: str
    last: str


class Verifier:
    """Compares one generation of one projector with the log. Used by one thread."""

    def __init__(self, connection: Connection, plan: Plan, sink: Sink, generation: str, registry: Registry) -> None:
        self._connection = connection
        self._plan, self._skipping = skipping(connection, plan)
        self._sink = sink
        self._generation = generation
        self._registry = registry

    def verify(self, progress: Progress | None = None) -> Report:
        """Compare every record. Reads the log once and the store once (twice if something differs); writes nothing.

        Memory is 16 bytes a record, and what the named differences take.
        """
        started = time.monotonic()
        self._skipping.load(self._connection, self._plan.name)
        records, suspects = self._suspects(progress)
        found = list(self._settled(suspects)) if suspects else []
        parked = ledger.parked(self._connection, self._plan.name, self._generation)
        found = [d for d in found if d.stream not in parked]
        return Report(
            self._plan.name,
            self._plan.store,
            self._generation,
            records,
            found[:NAMED_MAX],
            Counter(d.kind for d in found),
            sorted(parked),
            time.monotonic() - started,
        )

    def repair(self, report: Report) -> int:
        """Write the records that differ, as the log has them now, and nothing else; returns their number.

        A record that the store holds at a version the log has not reached (the log was restored from a
        backup) is put right at that version; only a rebuild makes it follow its stream again.
        """
        written = 0
        for stream, differences in _by_stream(report.differences).items():
            modelled = model_of(self._connection, self._plan, self._registry, stream)
            records = {r.key: r for r in modelled.records}
            changes = [
                Change(d.key, stream, max(d.version, modelled.good_version), records.get(d.key), repair=True)
                for d in differences
            ]
            self._sink.apply(self._generation, embedded(changes, self._plan.embed))
            written += len(changes)
        return written

    # ------------------------------------------------------------------ suspects

    def _suspects(self, progress: Progress | None) -> tuple[int, dict[str, set[str]]]:
        """The number of records in the log's model, and the suspects' keys by stream."""
        parked = ledger.parked(self._connection, self._plan.name, self._generation)
        logged, groups = array("Q"), list[_Group]()
        for some in _grouped(model(self._connection, self._plan, self._registry)):
            groups.append(_Group(len(logged), groups[-1].last if groups else "", some[-1].stream))
            logged.extend(_mark(s.stream, r) for s, r in self._digested(some) if s.stream not in parked)
            if progress is not None:
                progress(len(logged))
        held = array("Q", (_stored_mark(s) for s in self._sink.scan(self._generation) if s.stream not in parked))
        in_log, in_store = np.asarray(logged, dtype=np.uint64), np.asarray(held, dtype=np.uint64)
        suspects: defaultdict[str, set[str]] = defaultdict(set)
        self._name_logged(np.setdiff1d(in_log, in_store), in_log, groups, suspects)
        self._name_stored(np.setdiff1d(in_store, in_log), suspects)
        return len(logged), {s: keys for s, keys in suspects.items() if s not in parked}

    def _name_logged(
        self,
        alone: np.ndarray[Any, Any],
        marks: np.ndarray[Any, Any],
        groups: Sequence[_Group],
        suspects: dict[str, set[str]],
    ) -> None:
        """Fold those groups of streams again in which a mark stands that the store has not."""
        wanted = set(alone.tolist())
        places = np.flatnonzero(np.isin(marks, alone)) if wanted else np.empty(0, dtype=np.int64)
        of = np.unique(np.searchsorted([g.start for g in groups], places, side="right") - 1)
        for group in (groups[n] for n in of.tolist()):
            streams = model(self._connection, self._plan, self._registry, after_stream=group.after)
            for some in _grouped(takewhile(lambda s, last=group.last: s.stream <= last, streams)):  # type: ignore[misc]
                for stream, record in self._digested(some):
                    if _mark(stream.stream, record) in wanted:
                        suspects[stream.stream].add(record[0])

    def _name_stored(self, alone: np.ndarray[Any, Any], suspects: dict[str, set[str]]) -> None:
        wanted = set(alone.tolist())
        for stored in self._sink.scan(self._generation) if wanted else ():
            if _stored_mark(stored) in wanted:
                suspects[_owner(stored)].add(stored.key)

    def _digested(self, streams: Sequence[Modelled]) -> Iterator[tuple[Modelled, tuple[str, bytes]]]:
        owners = [s for s in streams for _ in s.records]
        records = embedded_records((r for s in streams for r in s.records), self._plan.embed)
        return ((s, (r.key, digest(r))) for s, r in zip(owners, records, strict=True))

    # ------------------------------------------------------------------- settling

    def _settled(self, suspects: Mapping[str, set[str]]) -> Iterator[Difference]:
        since = {s: model_of(self._connection, self._plan, self._registry, s).good_version for s in suspects}
        self._let_settle()
        for streams in _pieces(sorted(suspects), STREAMS_AT_A_TIME):
            keys = sorted(key for stream in streams for key in suspects[stream])
            # The store first: what the log says after it covers all that the store can have.
            stored = {
                s.key: s for some in _pieces(keys, KEYS_AT_A_TIME) for s in self._sink.scan(self._generation, some)
            }
            for stream in streams:
                allowed = self._allowed(stream, sorted(suspects[stream]), since[stream])
                for key, one in allowed.items():
                    yield from _differences(key, stream, stored.get(key), one)

    def _let_settle(self) -> None:
        timeout_s = SETTLE_S if ledger.is_relayed(self._connection) else min(SETTLE_S, UNRELAYED_S)
        try:
            wait_for_generation(self._connection, self._plan.name, self._generation, self._plan.topics, timeout_s)
        except WaitTimeout:
            return  # no relay or no projector runs: what differs now stays so, and is named

    def _allowed(self, stream: str, keys: Sequence[str], since: int) -> dict[str, _Allowed]:
        """What the store may hold under each key: as the log has it at ``since`` or any later version."""
        allowed = {key: _Allowed(set(), 0, 0) for key in keys}
        current: dict[str, tuple[Record, bytes] | None] = dict.fromkeys(keys)
        for version, made in self._versions(stream):
            for key in keys:
                was, now = current[key], made.get(key)
                if (was and was[1]) != (now and now[1]):
                    allowed[key] = replace(allowed[key], touched=version)
                    if version > since:
                        allowed[key].digests.add(self._digest(was))
                current[key] = now
                allowed[key] = replace(allowed[key], version=version)
        for key in keys:
            allowed[key].digests.add(self._digest(current[key]))
        return allowed

    def _versions(self, stream: str) -> Iterator[tuple[int, Mapping[str, tuple[Record, bytes]]]]:
        """The records of each version that can be folded."""
        if category_of(stream) not in self._plan.projection.categories:
            return
        state = State()
        for event in read_stream(self._connection, stream, Deferring(self._registry)):
            try:
                state = advance(self._plan.projection, state, event)
                made = forms(self._plan.projection, stream, state.value)
            except Exception:  # noqa: BLE001  # the projection's own code may raise anything; the stream gets parked
                return
            yield event.version, made

    def _digest(self, made: tuple[Record, bytes] | None) -> bytes | None:
        return None if made is None else digest(embedded_records([made[0]], self._plan.embed)[0])


def _differences(key: str, stream: str, stored: Stored | None, allowed: _Allowed) -> Iterator[Difference]:
    held = None if stored is None else stored.digest
    if held in allowed.digests and (stored is None or stored.stream == stream):
        return
    version = max(allowed.version, stored.version if stored else 0)
    kind: Kind = "different"
    if stored is None:
        kind = "missing"
    elif allowed.digests == {None}:
        kind = "extra"
    elif stored.version < allowed.touched:
        kind = "stale"
    yield Difference(key, stream, kind, version)


def _by_stream(differences: Iterable[Difference]) -> dict[str, list[Difference]]:
    found: defaultdict[str, list[Difference]] = defaultdict(list)
    for difference in differences:
        found[difference.stream].append(difference)
    return found


def _owner(stored: Stored) -> str:
    """The stream that a key belongs to by its form; what the store says of it may be what is wrong."""
    whole = stored.key == stored.stream or stored.key.startswith(stored.stream + "#")
    return stored.stream if whole else stored.key.partition("#")[0]


def _grouped(streams: Iterator[Modelled]) -> Iterator[list[Modelled]]:
    while some := list(islice(streams, STREAMS_AT_A_TIME)):
        yield some


def _pieces(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[at : at + size] for at in range(0, len(names), size))


def _stored_mark(stored: Stored) -> int:
    return _mark(stored.stream, (stored.key, stored.digest))


def _mark(stream: str, record: tuple[str, bytes]) -> int:
    """64 bits of a record's stream, key and digest: a difference is missed with a chance below 10^-12."""
    key, form = record
    whole = b"%b\0%b\0%b" % (stream.encode(), key.encode(), form)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest())
