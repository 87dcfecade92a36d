"""How fast a rebuild is: ``python -m benchmarks.rebuild [STORE ...]``.

A rebuild is timed whole, as a user waits for it: the log read and folded, the new generation loaded, caught up and
switched to. It stands beside

* the store's own bulk API, given the finished records of streams of one event, in its best batch size;
* the projector, which applies a history event by event as it comes from the broker: every stream's first event, then
  every stream's second, and so on, in polls so small that none holds two of one stream.

How it grows with the log is asked by :mod:`benchmarks.rebuild_growth`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from benchmarks.measuring import interleaved
from benchmarks.natives import BATCHES
from benchmarks.projecting import PLACES, PROJECTOR, Feed, Place, chosen, feed
from benchmarks.projector import apply, best_batch, native_load, rate
from benchmarks.results import Result, at_least
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import connected
from projectors import ledger
from projectors.rebuild import rebuild

RECORDS = 6_000
STREAMS = 2_000
HISTORY = 10
"""Events of a stream."""
LARGER = {"neo4j": 4, "elasticsearch": 3}
"""Times as many streams of ten events: where a generation is made, looked through and switched to, some tenths of a
second are the same for any size, and would be most of what is timed."""


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for place in chosen(given.stores):
        yield beside_bulk(servers, place, given)
        yield beside_projector(servers, place, given)


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
    larger = 1 if given.quick else LARGER.get(place.store, 1)
    streams = max(50, int(given.streams * place.share * larger))
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


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=RECORDS, help=f"beside the bulk API ({RECORDS:,})")
    parser.add_argument(
        "--streams", type=int, default=STREAMS, help=f"of ten events, beside the projector ({STREAMS:,})"
    )
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(place.store for place in PLACES))
    given = parser.parse_args()
    if given.quick:
        given.records, given.streams = 200, 50
    services = {"postgres"}.union(*(place.services for place in chosen(given.stores)))
    run("rebuild", sorted(services), measure, given)


if __name__ == "__main__":
    main()
