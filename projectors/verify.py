"""Verify: is the store equal to the log? Each record that is not is named. Repair writes just those.

Events in flight look like differences. So whatever differs at first is looked at again, stream by stream,
until it agrees or the projector has nothing left to apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

from outbox.codec import Registry
from outbox.database import Connection
from projectors import ledger
from projectors.model import Modelled, model, model_of
from projectors.pipeline import Plan, embedded, embedded_records
from projectors.record import Change, Record, Stored, digest
from projectors.sinks.protocol import Sink

Kind = Literal["missing", "stale", "extra", "different"]

STREAMS_AT_A_TIME: Final = 64
"""Streams folded before their texts are embedded together."""

SETTLE_S: Final = 30.0
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
    """What verify found. ``parked``: streams left out because they are dead letters."""

    projector: str
    store: str
    generation: str
    records: int
    differences: Sequence[Difference]
    parked: Sequence[str]
    seconds: float

    def count(self, kind: Kind) -> int:
        return sum(d.kind == kind for d in self.differences)

    @property
    def clean(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        kinds: tuple[Kind, ...] = ("missing", "stale", "extra", "different")
        return {"records": self.records, **{k: self.count(k) for k in kinds}, "parked": len(self.parked)}


@dataclass(frozen=True, slots=True)
class _Expected:
    stream: str
    version: int
    digest: bytes


class Verifier:
    """Compares one generation of one projector with the log. Used by one thread."""

    def __init__(self, connection: Connection, plan: Plan, sink: Sink, generation: str, registry: Registry) -> None:
        self._connection = connection
        self._plan = plan
        self._sink = sink
        self._generation = generation
        self._registry = registry

    def verify(self, progress: Progress | None = None) -> Report:
        """Compare every record. Reads the log once and the store once; writes nothing."""
        started = time.monotonic()
        parked = {d.stream for d in ledger.dead_letters(self._connection, self._plan.name, self._generation)}
        expected = self._expected(progress)
        count = len(expected)
        suspects = {
            d.key: d for d in self._compare(expected, self._sink.scan(self._generation)) if d.stream not in parked
        }
        differences = self._settled(suspects) if suspects else []
        return Report(
            self._plan.name,
            self._plan.store,
            self._generation,
            count,
            differences,
            sorted(parked),
            time.monotonic() - started,
        )

    def repair(self, report: Report) -> int:
        """Write the records that differ, as the log has them now, and nothing else."""
        streams = {d.stream for d in report.differences}
        wanted = {d.key: d for d in report.differences}
        changes: list[Change] = []
        for stream in sorted(streams):
            modelled = model_of(self._connection, self._plan, self._registry, stream)
            records = {r.key: r for r in modelled.records}
            changes += [
                Change(key, stream, max(d.version, modelled.version), records.get(key), repair=True)
                for key, d in wanted.items()
                if d.stream == stream
            ]
        self._sink.apply(self._generation, embedded(changes, self._plan.embed))
        return len(changes)

    def _expected(self, progress: Progress | None) -> dict[str, _Expected]:
        expected: dict[str, _Expected] = {}
        streams = model(self._connection, self._plan, self._registry)
        while some := list(islice(streams, STREAMS_AT_A_TIME)):
            expected |= self._digests(some)
            if progress is not None:
                progress(len(expected))
        return expected

    def _digests(self, streams: Sequence[Modelled]) -> dict[str, _Expected]:
        owners = [s for s in streams for _ in s.records]
        records: list[Record] = embedded_records((r for s in streams for r in s.records), self._plan.embed)
        return {r.key: _Expected(s.stream, s.version, digest(r)) for s, r in zip(owners, records, strict=True)}

    def _compare(self, expected: dict[str, _Expected], stored: Iterator[Stored]) -> Iterator[Difference]:
        for record in stored:
            want = expected.pop(record.key, None)
            if want is None:
                yield Difference(record.key, record.stream, "extra", record.version)
            elif want.stream != record.stream:
                yield Difference(record.key, want.stream, "different", max(want.version, record.version))
            elif want.digest != record.digest:
                stale = record.version < want.version
                yield Difference(
                    record.key, want.stream, "stale" if stale else "different", max(want.version, record.version)
                )
        for key, want in expected.items():
            yield Difference(key, want.stream, "missing", want.version)

    def _settled(self, suspects: dict[str, Difference]) -> list[Difference]:
        deadline = time.monotonic() + SETTLE_S
        while True:
            behind = ledger.lag(self._connection, self._plan.name, self._generation, self._plan.topics)
            suspects = self._again(suspects)
            if not suspects or not behind or time.monotonic() > deadline:
                return list(suspects.values())[:NAMED_MAX]

    def _again(self, suspects: dict[str, Difference]) -> dict[str, Difference]:
        """Look at the suspects' streams and records anew."""
        left: dict[str, Difference] = {}
        streams = sorted({d.stream for d in suspects.values()})
        for at in range(0, len(streams), STREAMS_AT_A_TIME):
            some = streams[at : at + STREAMS_AT_A_TIME]
            keys = [d.key for d in suspects.values() if d.stream in some]
            modelled = [model_of(self._connection, self._plan, self._registry, s) for s in some]
            expected = {k: v for k, v in self._digests(modelled).items() if k in set(keys)}
            for difference in self._compare(expected, self._sink.scan(self._generation, keys)):
                left[difference.key] = difference
        return left
