"""How much of a store's own bulk rate a projector reaches: ``python -m benchmarks.projector [STORE ...]``.

The projector is the product's own: it consumes events from the broker, folds them, embeds their texts where the store
takes vectors, and applies them under the version guard in batches of its usual size, checkpointing each. The reference
is given the finished records and sends them by the store's own bulk API, in the best of several batch sizes; it checks
and remembers nothing.

* First load: a new generation and every entity's first event.
* Full update: another event of every entity, all of whose text changes; the projector goes on in the same session.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.measuring import interleaved, say
from benchmarks.natives import BATCHES, Native
from benchmarks.projecting import PLACES, Feed, chosen, feed
from benchmarks.results import Result, at_least
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from projectors.record import Record
from projectors.session import Session

RECORDS = 6_000
TARGET = at_least(0.9)
Figures = dict[str, list[float]]


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    rounds = (given.rounds, 0 if given.quick else 1)
    for place in chosen(given.stores):
        total = max(50, int(given.records * place.share))
        with feed(servers, place) as one:
            one.publish(total)
            best = BATCHES[0] if given.quick else best_batch(one)
            note = f"{total:,} records, the reference in batches of {best:,}"
            for question, figures in (
                ("first load", loads(one, total, best, rounds)),
                ("full update", updates(one, total, best, rounds)),
            ):
                yield Result(f"{place.store}, {question}", "records/s", figures, TARGET, note)


def loads(one: Feed, total: int, batch: int, rounds: tuple[int, int]) -> Figures:
    """Both begin anew in every turn."""
    turns = {"ours": partial(first_load, one, total), f"{one.place.store} bulk": partial(native_load, one, batch)}
    return interleaved(turns, *rounds)


def first_load(one: Feed, total: int) -> float:
    """Events a second of a projector that begins."""
    with one.session() as session:
        return rate(total, lambda: apply(session, total))


def native_load(one: Feed, batch: int) -> float:
    records = one.records()
    with one.native() as native:
        return loaded(native, records, batch)


def updates(one: Feed, total: int, batch: int, rounds: tuple[int, int]) -> Figures:
    """Both go on with what they have loaded; every turn of the projector begins with a new version in the broker."""
    with ExitStack() as stack:
        session = stack.enter_context(one.session())
        native = stack.enter_context(one.native())
        apply(session, total)
        native.load(one.records(), batch)
        versions = iter(range(2, 2 + sum(rounds)))

        def ours() -> float:
            one.publish(total, [next(versions)])
            return rate(total, lambda: apply(session, total))

        def theirs() -> float:
            records = one.records()
            return rate(total, lambda: native.update(records, batch))

        figures = interleaved({"ours": ours, f"{one.place.store} bulk": theirs}, *rounds)
        if one.held() != total:
            raise RuntimeError(f"the projector's store holds {one.held()} of {total} records")
        return figures


def apply(session: Session, messages: int) -> None:
    """Step until so many messages are applied."""
    while messages > 0:
        messages -= session.step()


def best_batch(one: Feed) -> int:
    """The batch size in which the store's own API loads fastest."""
    rates = {batch: native_load(one, batch) for batch in BATCHES}
    say(f"  {one.place.store} bulk: " + ", ".join(f"{batch:,} {rate:,.0f}/s" for batch, rate in rates.items()))
    return max(rates, key=lambda batch: rates[batch])


def loaded(native: Native, records: Sequence[Record], batch: int) -> float:
    """The rate of a load. Raises RuntimeError if the store does not have all of it."""
    found = rate(len(records), lambda: native.load(records, batch))
    if native.count() != len(records):
        raise RuntimeError(f"the reference holds {native.count()} of {len(records)} records")
    return found


def rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=RECORDS, help=f"of a first load ({RECORDS:,})")
    parser.add_argument("stores", nargs="*", metavar="STORE", help=", ".join(place.store for place in PLACES))
    given = parser.parse_args()
    if given.quick:
        given.records = 200
    services = sorted(set().union(*(place.services for place in chosen(given.stores))))
    run("projector", services, measure, given)


if __name__ == "__main__":
    main()
