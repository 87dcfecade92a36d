"""How long questions take, beside the stores' own clients: ``python -m benchmarks.search``.

The product has filled the stores; each question is asked of the same collection, label or index by the product's
``Search`` and by the store's own client, for the same number of hits with the same fields. A figure is the median of a
turn's questions. The client is given the question's vector, where the product makes it from the text.

A hybrid question asks three stores at once and fuses what they say, so it cannot be faster than the slowest of its
parts: those are timed as questions of their own, for as many hits as a hybrid question takes. How much slower than that
it must be where servers share two cores, the three clients asked at once show.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final, Self

import neo4j
from elasticsearch import Elasticsearch

from benchmarks.entities import fill, name, stream, text
from benchmarks.freshness import drop
from benchmarks.measuring import interleaved, say
from benchmarks.projecting import PLACES, Place, read_side
from benchmarks.results import Result, at_most, beside
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.database import connected
from projectors import ledger
from projectors.query.search import WIDER, Search
from projectors.rebuild import rebuild
from projectors.sinks.chroma_client import collection_name, open_client
from projectors.sinks.elasticsearch import index_name
from projectors.sinks.neo4j_session import label_of
from projectors.wiring import ReadSide

RECORDS: Final = 10_000
"""The aim is stated for ``--records 100000``, which takes four minutes."""
QUESTIONS: Final = 60
"""In a turn."""
WORDS: Final = 6
"""Of a question."""
LIMIT: Final = 10
AT_ONCE: Final = "the three clients at once"
BY_STORE: Final = {place.store: place for place in PLACES}
STORES: Final[Mapping[str, Sequence[Place]]] = {
    "servers": [BY_STORE["chroma"], BY_STORE["neo4j"], BY_STORE["elasticsearch"]],
    "embedded": [Place("chroma", "vectors", None, "path"), BY_STORE["ladybug"], BY_STORE["tantivy"]],
}
NEIGHBOURS: Final = """
MATCH (n:`LABEL` {_key: $key})-[r]-(m:`LABEL`)
RETURN m._key AS key, m._kind AS kind, m.name AS name, type(r) AS edge, startNode(r) = n AS leaving LIMIT 50
"""


@dataclass(frozen=True, slots=True)
class Question:
    """``words`` of an entity's text, with their vector, and the entity's own key and name."""

    words: str
    vector: Any
    key: str
    name: str


Ask = Callable[[Question], Any]


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    places = {f"{place.projection}_{uuid.uuid4().hex[:8]}": place for place in STORES[given.mode]}
    with read_side(servers, places) as side, ExitStack() as stack:
        fill(side.write.dsn, given.records)
        stack.callback(drop, side)
        for projector in places:
            built = rebuild(side.plan(projector), side.stations(projector))
            say(f"  {side.plan(projector).store}: {built.records / built.seconds:,.0f} records/s loaded")
        search = stack.enter_context(Search(side))
        asks = ours(search) | (stack.enter_context(Clients(side, places)).asks if given.mode == "servers" else {})
        turns = {who: partial(milliseconds, ask, questions(given, side, places)) for who, ask in asks.items()}
        yield from results(interleaved(turns, given.rounds, 0 if given.quick else 1), f"{given.records:,} records")


def ours(search: Search) -> dict[str, Ask]:
    wide = LIMIT * WIDER
    return {
        "semantic": lambda q: search.semantic(q.words, LIMIT),
        "text": lambda q: search.text(q.words, LIMIT),
        "graph": lambda q: search.neighbours(q.key),
        "hybrid": lambda q: search.hybrid(q.words, LIMIT),
        "part: semantic": lambda q: search.semantic(q.words, wide),
        "part: text": lambda q: search.text(q.words, wide),
        "part: find": lambda q: search.find(q.words, LIMIT),
    }


class Clients:
    """The stores' own clients, on what the projectors have written."""

    def __init__(self, side: ReadSide, places: Mapping[str, Place]) -> None:
        self._side = side
        self._of = {place.store: projector for projector, place in places.items()}
        self._stack = ExitStack()
        self.asks: dict[str, Ask] = {}

    def __enter__(self) -> Self:
        self.asks = {
            "chroma query": self._chroma(),
            "elasticsearch search": self._elasticsearch(),
            "neo4j run": self._neo4j(),
        }
        together = self._stack.enter_context(ThreadPoolExecutor(len(self.asks)))
        alone = list(self.asks.values())
        self.asks[AT_ONCE] = lambda q: list(together.map(lambda ask: ask(q), alone))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _held(self, store: str) -> tuple[str, str]:
        """The projector's name, and the generation that serves."""
        with connected(self._side.write.dsn) as connection:
            return self._of[store], ledger.serving(connection, self._of[store]) or ""

    def _chroma(self) -> Ask:
        client = self._stack.enter_context(open_client(self._side.store_settings("chroma")))
        records = client.get_collection(collection_name(*self._held("chroma"), "records"), embedding_function=None)
        include: Any = ["distances", "documents", "metadatas"]
        return lambda q: records.query(query_embeddings=[q.vector], n_results=LIMIT, include=include)

    def _elasticsearch(self) -> Ask:
        client = self._stack.enter_context(Elasticsearch(self._side.store_settings("elasticsearch")["url"]))
        index = index_name(*self._held("elasticsearch"))
        snippet = {"type": "plain", "fragment_size": 160, "number_of_fragments": 1}
        return lambda q: client.search(
            index=index,
            query={"multi_match": {"query": q.words, "fields": ["title^3", "text", "key.words^2"]}},
            size=LIMIT,
            source_includes=["key", "kind", "title", "properties"],
            highlight={"fields": {"text": snippet}},
            track_total_hits=False,
        )

    def _neo4j(self) -> Ask:
        driver = self._stack.enter_context(neo4j.GraphDatabase.driver(self._side.store_settings("neo4j")["url"]))
        session = self._stack.enter_context(driver.session())
        statement: Any = NEIGHBOURS.replace("LABEL", label_of(*self._held("neo4j")))
        return lambda q: session.run(statement, key=q.key).data()


def questions(given: argparse.Namespace, side: ReadSide, places: Mapping[str, Place]) -> list[Question]:
    """The same for everybody."""
    chosen = random.Random(given.records).sample(range(given.records), min(given.questions, given.records))
    words = [" ".join(text(n, 1).split()[:WORDS]) for n in chosen]
    vectors = side.embedder(next(iter(places)))(words)
    return [Question(w, v, stream(n), name(n)) for n, w, v in zip(chosen, words, vectors, strict=True)]


def milliseconds(ask: Ask, asked: Sequence[Question]) -> float:
    """The median of the questions."""
    taken = []
    for question in asked:
        began = time.perf_counter()
        ask(question)
        taken.append(time.perf_counter() - began)
    return median(taken) * 1_000


def results(figures: Mapping[str, Sequence[float]], note: str) -> Iterator[Result]:
    clients = {"semantic": "chroma query", "text": "elasticsearch search", "graph": "neo4j run"}
    for question, client in clients.items():
        if client in figures:
            yield beside(f"{question} search", figures, (question, client), "ms", note=note)
        else:
            yield Result(f"{question} search", "ms", {"ours": figures[question]}, note=note)
    parts = [figures[who] for who in figures if who.startswith("part: ")]
    slowest = [max(turn) for turn in zip(*parts, strict=True)]
    samples = {"ours": figures["hybrid"], "slowest part": slowest}
    yield Result("hybrid search", "ms", samples, at_most(1.15), note)
    if AT_ONCE in figures:
        yield beside("hybrid search, all parts at once", figures, ("hybrid", AT_ONCE), "ms", note=note)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--records", type=int, default=RECORDS, help=f"in each store ({RECORDS:,})")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help=f"in a turn ({QUESTIONS})")
    parser.add_argument("--mode", choices=STORES, default="servers", help="the stores that are asked (servers)")
    given = parser.parse_args()
    if given.quick:
        given.records, given.questions = 200, 5
    services = {"postgres"}.union(*(place.services for place in STORES[given.mode]))
    run("search", sorted(services), measure, given)


if __name__ == "__main__":
    main()
