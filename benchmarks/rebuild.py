"""How fast a rebuild is: ``python -m benchmarks.rebuild [STORE ...]``.

A rebuild is timed whole, as a user waits for it: the log read and folded, the new generation loaded, caught up and
switched to. It stands beside

* the store's own bulk API, given the finished records of streams of one event, in its best batch size;
* the projector, which applies a history event by event as it comes from the broker: every stream's first event, then
  every stream's second, and so on, in polls so small that none holds two of one stream;
* itself, at a tenth of the events and less: rate, and peak memory of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measuring import interleaved
from benchmarks.natives import BATCHES
from benchmarks.projecting import PLACES, PROJECTOR, Feed, Place, chosen, feed, opened
from benchmarks.projector import apply, best_batch, native_load, rate
from benchmarks.results import Result, at_least, at_most
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import connected
from outbox.settings import load
from projectors import ledger
from projectors.rebuild import rebuild

RECORDS = 10_000
STREAMS = 2_000
HISTORY = 10
"""Events of a stream."""
SIZES = (10_000, 100_000)
GROWN = "postgres"
"""The store whose rebuild is measured as it grows: the fastest, so that the log's part shows."""
WITHIN = 0.2


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for place in chosen(given.stores):
        yield beside_bulk(servers, place, given)
        yield beside_projector(servers, place, given)
    if not given.stores or GROWN in given.stores:
        yield from growth(servers, given)


def beside_bulk(servers: Resolved, place: Place, given: argparse.Namespace) -> Result:
    total = max(50, int(given.records * place.share))
    with feed(servers, place) as one:
        one.append(total)
        batch = BATCHES[0] if given.quick else best_batch(one)
        turns = {"ours": partial(rebuilt, one, total), f"{place.store} bulk": partial(native_load, one, batch)}
        figures = interleaved(turns, given.rounds, 0 if given.quick else 1)
    note = f"{total:,} records, the reference in batches of {batch:,}"
    return Result(f"{place.store}, rebuild of streams of one event", "records/s", figures, at_least(0.85), note)


def beside_projector(servers: Resolved, place: Place, given: argparse.Namespace) -> Result:
    streams = max(50, int(given.streams * place.share))
    with feed(servers, place) as one:
        one.publish(streams, range(1, HISTORY + 1))
        events = streams * HISTORY
        turns = {"ours": partial(rebuilt, one, events), "projector": partial(projected, one, events, streams // 2)}
        figures = interleaved(turns, given.rounds, 0 if given.quick else 1)
    note = f"{streams:,} streams"
    return Result(f"{place.store}, rebuild of streams of {HISTORY} events", "events/s", figures, at_least(5), note)


def rebuilt(one: Feed, count: int) -> float:
    """The rate of a rebuild while a generation serves. The one that served is dropped when the clock has stopped."""
    found = count / rebuild(one.plan, one.stations).seconds
    with connected(one.dsn) as connection:
        for old in ledger.generations(connection, PROJECTOR):
            if old.state == "retired":
                one.drop(connection, old.name)
    return found


def projected(one: Feed, events: int, messages: int) -> float:
    with one.session(messages) as session:
        return rate(events, lambda: apply(session, events))


def growth(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Rate and memory at each size beside those at the smallest."""
    (place,) = chosen([GROWN])
    peaks: dict[str, list[float]] = {f"{events:,}": [] for events in given.sizes}
    with ExitStack() as stack:
        turns = {}
        for events in given.sizes:
            one = stack.enter_context(feed(servers, place))
            one.append(events // HISTORY, range(1, HISTORY + 1))
            turns[f"{events:,}"] = partial(grown, one, events, peaks[f"{events:,}"])
        rates = interleaved(turns, given.rounds, warm_up=0)
    least, *others = peaks
    for size in others:
        question = f"rebuild of {size} events beside one of {least}"
        names = {"ours": size, f"{least} events": least}
        samples = {name: rates[key] for name, key in names.items()}
        yield Result(f"{question}: rate", "events/s", samples, at_least(1 - WITHIN), f"{GROWN}; ten events a stream")
        samples = {name: peaks[key] for name, key in names.items()}
        yield Result(f"{question}: memory", "MiB", samples, at_most(1 + WITHIN), "peak of the process")


def grown(one: Feed, events: int, peaks: list[float]) -> float:
    """The rate of a rebuild in a new process; its peak memory goes to ``peaks``."""
    settings = one.side.settings.model_dump(mode="json")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        seconds, peak_mib = process.submit(alone, settings).result()
    peaks.append(peak_mib)
    return events / seconds


def alone(settings: dict[str, Any]) -> tuple[float, float]:
    """Rebuild, and return the seconds it took and this process's peak memory in MiB."""
    with opened(load(**settings)) as side:
        seconds = rebuild(side.plan(PROJECTOR), side.stations(PROJECTOR)).seconds
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return seconds, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=RECORDS, help=f"beside the bulk API ({RECORDS:,})")
    parser.add_argument(
        "--streams", type=int, default=STREAMS, help=f"of ten events, beside the projector ({STREAMS:,})"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="events, the smallest first (10000 100000)")
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(place.store for place in PLACES))
    given = parser.parse_args()
    if given.quick:
        given.records, given.streams, given.sizes = 200, 50, (100, 200)
    services = {"postgres"}.union(*(place.services for place in chosen(given.stores)))
    run("rebuild", sorted(services), measure, given)


if __name__ == "__main__":
    main()
