"""Verify: is the store equal to the log? Each record that is not is named. Repair writes just those.

1. Compare log and store, whole or by the sums of slices (:mod:`projectors.verify_suspects`). With nothing in
   flight that is the end of it.
2. Events in flight look like differences. So wait until what is committed by now is applied, and look at the
   suspects once more: a record is right if it is as the log had it at any version from then on.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import WaitTimeout
from outbox.event import category_of
from outbox.log.read import read_stream
from projectors import ledger
from projectors.decoding import Deferring
from projectors.folding import Failure, Forms, versions
from projectors.model import model_of
from projectors.pipeline import Plan, embedded, embedded_records
from projectors.projection import resets_of
from projectors.record import Change, Record, Stored, digest
from projectors.sinks.protocol import Sink
from projectors.skipping import skipping
from projectors.verify_suspects import STREAMS_AT_A_TIME, Comparison, Progress, Suspects
from projectors.wait import wait_for_generation

Kind = Literal["missing", "stale", "extra", "different"]
KINDS: Final[tuple[Kind, ...]] = ("missing", "stale", "extra", "different")

KEYS_AT_A_TIME: Final = 500
"""Records asked of the store by key, or repaired, together."""

SETTLE_S: Final = 30.0
"""How long what is in flight may take; after it a record that differs is named, whatever the reason."""

UNRELAYED_S: Final = 5.0
"""The same while no relay leads: a stand-by would have taken over by then."""

NAMED_MAX: Final = 10_000
"""Differences named; more than that is a rebuild's work, and they are still counted."""


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

    ``differences`` names at most :data:`NAMED_MAX`; ``counts`` has them all. ``slices``: how many of the store's
    were read by a quick look, None if it was read whole; ``why_full``: why, if a quick look was asked for.
    """

    projector: str
    store: str
    generation: str
    records: int
    differences: Sequence[Difference]
    counts: Mapping[Kind, int]
    parked: Sequence[str]
    seconds: float
    slices: int | None = None
    why_full: str = ""

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


class Verifier:
    """Compares one generation of one projector with the log. Used by one thread."""

    def __init__(self, connection: Connection, plan: Plan, sink: Sink, generation: str, registry: Registry) -> None:
        self._connection = connection
        self._plan, self._skipping = skipping(connection, plan)
        self._sink = sink
        self._generation = generation
        self._registry = registry

    def verify(self, progress: Progress | None = None, *, quick: bool = False) -> Report:
        """Compare every record. Reads the log once and the store once (twice if something differs); writes nothing.

        ``quick`` asks the store for sums of what its records say of themselves and reads only the slices that
        differ: it finds each record that is missing, stale, or too many, but not content that was changed behind
        its mark (by another's hand, or lost by the store itself). It reads the store whole if that keeps no sums.

        Memory is 18 bytes a record, and what the named differences take.
        """
        started = time.monotonic()
        self._skipping.load(self._connection, self._plan.name)
        suspects = self._suspects(progress, quick=quick)
        found = list(self._settled(suspects.keys)) if suspects.keys else []
        parked = ledger.parked(self._connection, self._plan.name, self._generation)
        found = [d for d in found if d.stream not in parked]
        return Report(
            self._plan.name,
            self._plan.store,
            self._generation,
            suspects.records,
            found[:NAMED_MAX],
            Counter(d.kind for d in found),
            sorted(parked),
            time.monotonic() - started,
            suspects.slices,
            suspects.why_full,
        )

    def repair(self, report: Report) -> int:
        """Write the records that differ, as the log has them now, and nothing else; returns their number.

        A record that the store holds at a version the log has not reached (the log was restored from a
        backup) is put right at that version; only a rebuild makes it follow its stream again.
        """
        written = 0
        for changes in self.repairs(report):
            self._sink.apply(self._generation, changes)
            written += len(changes)
        return written

    def repairs(self, report: Report) -> Iterator[list[Change]]:
        """What :meth:`repair` writes, stream by stream, ready for the sink."""
        for stream, differences in _by_stream(report.differences).items():
            modelled = model_of(self._connection, self._plan, self._registry, stream)
            records = {r.key: r for r in modelled.records}
            changes = [
                Change(d.key, stream, max(d.version, modelled.good_version), records.get(d.key), repair=True)
                for d in differences
            ]
            yield embedded(changes, self._plan.embed)

    def _suspects(self, progress: Progress | None, *, quick: bool) -> Suspects:
        looking = Comparison(self._connection, self._plan, self._sink, self._generation, self._registry)
        return looking.suspects(progress, quick=quick)

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

    def _versions(self, stream: str) -> Iterator[tuple[int, Forms]]:
        """The records of each version that can be folded."""
        if category_of(stream) not in self._plan.projection.categories:
            return
        events = read_stream(self._connection, stream, Deferring(self._registry))
        for state, made in versions(self._plan.projection, resets_of(self._plan.projection), stream, events):
            if not isinstance(made, Failure):
                yield state.version, made

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


def _pieces(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[at : at + size] for at in range(0, len(names), size))
