"""How long after COMMIT is an event visible in a store? ``python -m benchmarks.freshness``

Events are committed one by one at a fixed rate and carried through Kafka; each is then waited for by asking the stores
themselves (get by key, each from a process of its own), not our own checkpoints. Relay and projectors are processes,
too, and share the machine with the servers and with those who ask. First Elasticsearch alone, then all three stores,
where an event counts as visible once it is in the slowest of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.databases import fresh_database
from benchmarks.measuring import say
from benchmarks.processes import processes
from benchmarks.results import Result, Target, at_most, at_quantiles
from benchmarks.running import options, run
from benchmarks.watching import Place, Watcher
from deploy.local.resolve import Resolved
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.settings import load
from projectors import ledger
from projectors.wiring import ReadSide, open_read_side

PROJECTIONS: Final = {"chroma": "vectors", "neo4j": "graph", "elasticsearch": "documents"}
ALL: Final = tuple(PROJECTIONS)
RATE: Final = 50.0
COMMITS: Final = 150
BEGIN_WITHIN_S: Final = 120.0
VISIBLE_WITHIN_S: Final = 60.0
WATCHED: Final = 50
"""Events a second that are asked for; of more, every so many-th: all of 500 leave a store little time for else."""
WARM: Final = 100
WARM_UP: Final = 2
"""Rounds that are not counted: three servers written in Java are slow until they have done it for a while."""


@dataclass(frozen=True)
class Question:
    """How soon is it there? ``pause_s``: between two questions to a store. Asked as often as one store can bear, three
    of them would be kept busier by those who ask than by what is written; what is seen is seen so much later."""

    stores: Sequence[str]
    targets: Mapping[str, Target]
    pause_s: float


QUESTIONS: Final = (
    Question(("elasticsearch",), {"p50": at_most(12), "p99": at_most(25)}, 0.002),
    Question(ALL, {"p50": at_most(40), "p99": at_most(150)}, 0.010),
)


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for question in QUESTIONS:
        with side_of(servers, question.stores) as side, watching(side, question.pause_s) as watchers:
            rounds = range(given.warm_up + given.rounds)
            found = [latencies_ms(side, watchers, given.rate, given.commits) for _ in rounds][given.warm_up :]
        said = f"commit to visible in {' and '.join(question.stores)}, {given.rate:g}/s"
        yield from at_quantiles(said, "ms", {"ours": found}, question.targets)


@contextmanager
def side_of(servers: Resolved, stores: Sequence[str]) -> Iterator[ReadSide]:
    """A relay and the projectors of these stores at work, warm, on a database of their own."""
    with fresh_database(servers.address("postgres")) as dsn:
        settings = _settings(servers.address, stores) | {"OUTBOX_DATABASE__DSN": dsn}
        commands = [["relay"], *(["project", name] for name in json.loads(settings["OUTBOX_PROJECTORS"]))]
        os.environ.update(settings)
        with open_read_side(load()) as side:
            with processes(settings, commands):
                _warm(side)
                yield side
            drop(side)


@contextmanager
def watching(side: ReadSide, pause_s: float) -> Iterator[Sequence[Watcher]]:
    """A watcher of each store of the side."""
    with side.write.connection() as connection, ExitStack() as stack:
        places = [place(side, name, ledger.serving(connection, name)) for name in side.projecting]
        yield [stack.enter_context(Watcher(one, pause_s)) for one in places]


def latencies_ms(side: ReadSide, watchers: Sequence[Watcher], rate: float, commits: int) -> list[float]:
    """From COMMIT to visible in every store that is watched, of each event that is asked for."""
    every = max(1, round(rate / WATCHED))
    keys = [f"python-{uuid.uuid4().hex}.n{i}" for i in range(commits)]
    with side.write.connection() as connection:
        committed: dict[str, float] = {}
        started = time.monotonic()
        for i, key in enumerate(keys):
            time.sleep(max(0.0, started + i / rate - time.monotonic()))
            append(connection, key, event(i), expected="none", registry=side.write.registry)
            committed[key] = time.monotonic()
            if i % every == 0:
                for watcher in watchers:
                    watcher.committed(key)
        say(f"{commits / (time.monotonic() - started):.1f} commits/s, asked for {rate:g}")
    seen = [watcher.seen(VISIBLE_WITHIN_S) for watcher in watchers]
    return [(max(at[key] for at in seen) - committed[key]) * 1e3 for key in keys[::every]]


def drop(side: ReadSide) -> None:
    """Take out of the servers what was written into them: Chroma's writes read the unsaved rows of all collections."""
    with side.write.connection() as connection:
        for projector in side.projecting:
            with side.open_sink(projector) as sink:
                for known in ledger.generations(connection, projector):
                    sink.drop(known.name)


def place(side: ReadSide, name: str, generation: str | None) -> Place:
    """Where a projector's store keeps the generation."""
    # Not above: who only watches or writes, in a process of its own, would wait seconds for the stores' clients.
    from projectors.sinks.chroma_client import collection_name
    from projectors.sinks.elasticsearch import index_name
    from projectors.sinks.neo4j_session import label_of

    store = side.plan(name).store
    held = {
        "chroma": collection_name(name, generation or "", "records"),
        "neo4j": label_of(name, generation or ""),
        "elasticsearch": index_name(name, generation or ""),
    }
    return Place(store, str(side.store_settings(store)["url"]), held[store])


def _warm(side: ReadSide) -> None:
    from projectors.query.search import Search

    with side.write.connection() as connection, Search(side) as search:
        _until(lambda: all(ledger.serving(connection, name) for name in side.projecting), BEGIN_WITHIN_S)
        for i in range(WARM):
            done = append(connection, f"python-warm.n{i}", event(i), expected="any", registry=side.write.registry)
            search.wait_for(done.token, timeout_s=VISIBLE_WITHIN_S)


def event(i: int) -> NewEvent:
    """An entity of about 450 bytes."""
    text = f"Function number {i} of a benchmark. " * 8
    data = {"kind": "module", "name": f"bench{i}", "text": text, "properties": {"line": i}}
    return NewEvent("entity.upserted", data)


def _settings(address: Callable[[str], str], stores: Sequence[str]) -> dict[str, str]:
    mark = uuid.uuid4().hex[:8]
    projectors = {
        f"{PROJECTIONS[store]}_{mark}": {"projection": PROJECTIONS[store], "store": store} for store in stores
    }
    return {
        "OUTBOX_MODE": "servers",
        "OUTBOX_PREFIX": f"bench.{mark}",
        "OUTBOX_KAFKA__BOOTSTRAP": address("kafka"),
        "OUTBOX_PROJECTORS": json.dumps(projectors),
        **{f"OUTBOX_STORES__{store.upper()}__URL": address(store) for store in stores},
    }


def _until(condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the projectors did not begin in time")
        time.sleep(0.05)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rate", type=float, default=RATE, help=f"commits a second ({RATE:g})")
    parser.add_argument("--commits", type=int, default=COMMITS, help=f"in each round ({COMMITS})")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"rounds that are not counted ({WARM_UP})")
    given = parser.parse_args()
    if given.quick:
        given.commits, given.warm_up = 20, 0
    run("freshness", ["postgres", "kafka", *PROJECTIONS], measure, given)


if __name__ == "__main__":
    main()
