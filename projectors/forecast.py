"""What a rebuild or a repair would do, and about how long it would take. Nothing that readers see is written.

The time is measured on the very store: streams chosen evenly by a hash of their names are read, folded, written to
and read back from a throw-away generation, which is dropped again, and what that took is scaled up. A store
that slows down as it fills takes longer than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from outbox.database import Connection, connected
from outbox.errors import RecordsRefused
from projectors import placement
from projectors.building import lock
from projectors.model import model_some
from projectors.pipeline import Plan, embedded
from projectors.rebuild import TRIAL, upcoming
from projectors.record import Change
from projectors.session import Stations
from projectors.sinks.protocol import Sink
from projectors.skipping import skipping
from projectors.verify import Report, Verifier

SAMPLE_STREAMS: Final = 300
SAMPLE_CHANGES: Final = 1_000
"""Enough for a rate, and written in a second or two by the slowest store."""
WARM_CHANGES: Final = 16
"""Written before the clock starts: a first write opens connections and loads models."""

_EXTENT: Final = """
SELECT count(*) FILTER (WHERE version = 1), count(*) FROM outbox.event
WHERE split_part(stream, '-', 1) = ANY (%(categories)s::text[]) AND stream > %(after)s
"""
_SAMPLE: Final = """
SELECT stream FROM outbox.event
WHERE version = 1 AND split_part(stream, '-', 1) = ANY (%(categories)s::text[]) AND stream > %(after)s
ORDER BY hashtext(stream), stream LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What ``outbox rebuild`` would do now.

    ``resumes``: it goes on with a build that was left unfinished, and the figures are of what is left of it.
    ``drops``: generations that would be gone at its end. ``serving_in``: the store of what serves, null if that is not
    known. ``records`` is scaled up from ``sampled`` streams unless those are all; so is ``seconds``, of the load and,
    if asked for, the check (not of the catch-up).
    """

    generation: str
    resumes: bool
    serving: str | None
    serving_in: str | None
    drops: Sequence[str]
    streams: int
    events: int
    records: int
    sampled: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RepairForecast:
    """What ``verify --repair`` would do: records to write, keys to remove, and about how many seconds it takes."""

    writes: int
    removes: int
    sampled: int
    seconds: float


def forecast(plan: Plan, stations: Stations, *, check: bool) -> Forecast:
    """What the next rebuild would do; ``check``: with its verification.

    Raises :class:`~projectors.building.Building` while a build or another dry run goes on.
    """
    with connected(stations.dsn) as connection, stations.sink() as sink:
        lock(connection, plan.name)
        coming = upcoming(connection, plan)
        serving = placement.serving(connection, [plan.name]).get(plan.name)
        span = {"categories": list(plan.projection.categories), "after": coming.after}
        streams, events = connection.execute(_EXTENT, span).fetchall()[0]
        sample = [s for (s,) in connection.execute(_SAMPLE, {**span, "limit": SAMPLE_STREAMS})]
        records, seconds = _tried(connection, plan, stations, sink, sample, check=check)
        scale = streams / len(sample) if sample else 0.0
        return Forecast(
            coming.generation,
            bool(coming.after),
            serving.generation if serving else None,
            serving.store if serving else None,
            [g.name for g in (*coming.discards, *coming.drops)],
            streams,
            events,
            round(records * scale),
            len(sample),
            seconds * scale,
        )


def forecast_repair(plan: Plan, stations: Stations, sink: Sink, verifier: Verifier, report: Report) -> RepairForecast:
    """What repairing what ``report`` names would do. Raises as :func:`forecast` does."""
    with connected(stations.dsn) as connection:
        lock(connection, plan.name)
        began = time.monotonic()
        changes = list(chain.from_iterable(verifier.repairs(report)))
        fold_s = time.monotonic() - began
        sample = changes[:SAMPLE_CHANGES]
        with _trial(sink):
            write_s = _seconds(lambda: _write(sink, sample))
    removes = sum(1 for c in changes if c.record is None)
    scale = len(changes) / len(sample) if sample else 0.0
    return RepairForecast(len(changes) - removes, removes, len(sample), fold_s + write_s * scale)


def _tried(
    connection: Connection, plan: Plan, stations: Stations, sink: Sink, sample: Sequence[str], *, check: bool
) -> tuple[int, float]:
    """The records of these streams, and the seconds that building (and checking) them took."""
    folding, _ = skipping(connection, plan)
    began = time.monotonic()
    modelled = list(model_some(connection, folding, stations.registry, sample))
    fold_s = time.monotonic() - began
    changes = list(islice(chain.from_iterable(m.changes() for m in modelled), SAMPLE_CHANGES))
    records = sum(len(m.records) for m in modelled)
    with _trial(sink):
        _write(sink, embedded(changes[:WARM_CHANGES], plan.embed))
        began = time.monotonic()
        ready = embedded(changes, plan.embed)
        embed_s = time.monotonic() - began
        write_s = _seconds(lambda: _write(sink, ready))
        read_s = _seconds(lambda: sum(1 for _ in sink.scan(TRIAL))) if check else 0.0
    scale = records / len(changes) if changes else 0.0
    again = fold_s + embed_s * scale if check else 0.0
    return records, fold_s + (embed_s + write_s + read_s) * scale + again


@contextmanager
def _trial(sink: Sink) -> Iterator[None]:
    """An empty throw-away generation. A crash leaves it to the next dry run or rebuild, which drops it."""
    sink.drop(TRIAL)
    sink.prepare(TRIAL)
    try:
        yield
    finally:
        sink.drop(TRIAL)


def _write(sink: Sink, changes: Sequence[Change]) -> None:
    with suppress(RecordsRefused):  # a build parks their streams, which costs it nothing to speak of
        sink.apply(TRIAL, changes)


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
