"""What every reader must answer: the same as the model, asked over the same records in the real store."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import StoreUnavailable
from projectors.query.memory import MemoryReader
from projectors.query.protocol import DEPTH_MAX
from projectors.record import Change, Document, Edge, Node, Record, Vector
from projectors.sinks.memory import MemorySink
from projectors.sinks.memory import Space as Model
from projectors.sinks.protocol import Sink
from tests.conformance.samples import DIMENSIONS, KEYS, TEXTS, embedding
from tests.conformance.sinks import STORES, Space, Store, answering, label, put, tombstone

vectors, documents, graphs = answering(Vector), answering(Document), answering(Node)

WRONG_BY = 1e-5
"""float32 has about 7 digits; a cosine sums a few products of them."""

ANSWERS_WITHIN_S = 30.0

INPUTS = [
    *[text for name, text in TEXTS.items()],
    *KEYS,
    "+alpha -beta",
    '"alpha',
    "alpha AND (",
    "alpha OR",
    "NOT",
    "alpha~99 beta^",
    "[alpha TO",
    "title:alpha",
    "a*b?c",
    "/[/",
    "\\",
    "alpha'); MATCH (n) DETACH DELETE n //",
    "a" * 100_000,
    "alpha " * 5_000,
    "caf\udce9",  # how Python takes a byte that is no UTF-8 from a command line
    "\ud800",
]
"""What users type; none of it may be taken for syntax."""


@pytest.fixture
def reader(space: Space, sink: Sink) -> Iterator[Any]:
    """Open beside the sink, as a process that both writes and answers has them."""
    with space.open_reader() as reader:
        yield reader


class Both:
    """The real store and the model, brought to hold the same."""

    def __init__(self, sink: Sink, generation: str) -> None:
        self._sink, self._generation = sink, generation
        model = Model()
        self._model_sink, self.model = MemorySink(model), MemoryReader(model)
        self._model_sink.prepare(generation)

    def hold(self, changes: Sequence[Change]) -> None:
        self._sink.apply(self._generation, changes)
        self._model_sink.apply(self._generation, changes)


@pytest.fixture
def both(sink: Sink, g: str) -> Both:
    return Both(sink, g)


def keys(answers: Sequence[Any]) -> list[str]:
    return [answer.key for answer in answers]


# --- nearest -------------------------------------------------------------------------------------------------


def points(count: int) -> list[Change]:
    return [put(Vector(f"v{n}", f"text {n}", {"n": n, "kind": "point"}, embedding(f"v{n}")), 1) for n in range(count)]


@vectors
def test_the_nearest_are_those_of_the_model_with_their_cosines(reader: Any, both: Both, g: str) -> None:
    both.hold(points(60))
    for asked in range(10):
        vector = embedding(f"asked {asked}")
        found, wanted = reader.nearest(g, vector, 10), both.model.nearest(g, vector, 10)
        assert keys(found) == keys(wanted)
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=WRONG_BY)


@vectors
def test_a_nearest_hit_tells_what_was_found(store: Store, reader: Any, both: Both, g: str) -> None:
    record = Vector("v", "some text", {"kind": "note", "title": "A title", "n": 1, "ratio": 0.1}, embedding("v"))
    both.hold([put(record, 1)])
    (hit,) = reader.nearest(g, embedding("v"), 5)
    assert (hit.key, hit.kind, hit.title, hit.snippet) == ("v", "note", "A title", "some text")
    assert hit.properties == record.metadata
    assert hit.store == store.entry
    assert hit.score == pytest.approx(1, abs=WRONG_BY)


@vectors
def test_the_length_of_a_vector_does_not_count(reader: Any, both: Both, g: str) -> None:
    axes = {"x": [1.0, 0.0], "longer": [70.0, 7.0], "opposite": [-3.0, 0.0], "across": [0.0, 0.01]}
    pad = [0.0] * (DIMENSIONS - 2)
    both.hold([put(Vector(key, "t", {}, [*axis, *pad]), 1) for key, axis in axes.items()])
    found = reader.nearest(g, [0.001, 0.0, *pad], 10)
    assert keys(found) == ["x", "longer", "across", "opposite"]
    assert [hit.score for hit in found] == pytest.approx([1, 0.995037, 0, -1], abs=WRONG_BY)


@vectors
def test_nearest_gives_no_more_than_asked_for(reader: Any, both: Both, g: str) -> None:
    both.hold(points(20))
    for limit, given in ((0, 0), (1, 1), (7, 7), (20, 20), (50, 20)):
        assert len(reader.nearest(g, embedding("asked"), limit)) == given


@vectors
def test_nearest_follows_changes_and_never_shows_tombstones(reader: Any, both: Both, g: str) -> None:
    both.hold([*points(30), tombstone("never", 1)])
    both.hold([tombstone(f"v{n}", 2) for n in range(0, 30, 2)])
    moved = Vector("v1", "moved", {}, embedding("elsewhere"))
    both.hold([put(moved, 2), put(Vector("v2", "again", {}, embedding("v2")), 3)])
    for vector in (embedding("v1"), embedding("elsewhere"), embedding("v2"), embedding("v4")):
        assert keys(reader.nearest(g, vector, 40)) == keys(both.model.nearest(g, vector, 40))
    assert reader.nearest(g, embedding("elsewhere"), 1)[0].snippet == "moved"


@vectors
def test_nothing_is_near_in_an_empty_generation(space: Space, sink: Sink, reader: Any, both: Both) -> None:
    other = space.generation(sink)
    both.hold(points(5))
    assert list(reader.nearest(other, embedding("v1"), 5)) == []


# --- match ---------------------------------------------------------------------------------------------------

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]


def texts(count: int) -> list[Change]:
    source = random.Random(4)
    return [
        put(
            Document(f"d{n}", "note", " ".join(source.sample(WORDS, 2)), " ".join(source.sample(WORDS, 3)), {"n": n}), 1
        )
        for n in range(count)
    ]


@documents
def test_the_matches_are_those_of_the_model(reader: Any, both: Both, g: str) -> None:
    both.hold([*texts(40), put(Document("none", "note", "unlike", "anything else"), 1)])
    for asked in ("alpha", "ALPHA", "alpha bravo", "  golf,hotel! ", "zulu", "echo zulu", " ".join(WORDS)):
        assert sorted(keys(reader.match(g, asked, 100))) == sorted(keys(both.model.match(g, asked, 100)))


@documents
def test_the_best_match_comes_first(reader: Any, both: Both, g: str) -> None:
    both.hold(
        [
            put(Document("all", "note", "alpha bravo", "alpha bravo charlie"), 1),
            put(Document("one", "note", "delta echo", "foxtrot golf charlie"), 1),
            put(Document("other", "note", "delta echo", "foxtrot golf hotel"), 1),
        ]
    )
    found = reader.match(g, "alpha bravo charlie", 10)
    assert keys(found) == ["all", "one"]
    assert found[0].score > found[1].score


@documents
def test_a_match_tells_what_was_found(store: Store, reader: Any, both: Both, g: str) -> None:
    record = Document("d", "note", "A title", "some words of text", {"n": 1, "ratio": 0.1, "tags": ["a", "b"]})
    both.hold([put(record, 1)])
    (hit,) = reader.match(g, "words", 5)
    assert (hit.key, hit.kind, hit.title, hit.store) == ("d", "note", "A title", store.entry)
    assert "words" in hit.snippet
    assert hit.properties == record.properties


@documents
def test_words_of_other_scripts_match(reader: Any, both: Both, g: str) -> None:
    both.hold([put(Document(f"d{n}", "note", word, "t"), 1) for n, word in enumerate(["über", "שלום", "данные"])])
    for n, word in enumerate(["Über", "שלום", "ДАННЫЕ"]):
        assert keys(reader.match(g, word, 5)) == [f"d{n}"]


@documents
def test_match_gives_no_more_than_asked_for(reader: Any, both: Both, g: str) -> None:
    both.hold([put(Document(f"d{n}", "note", "alpha", "bravo"), 1) for n in range(20)])
    for limit, given in ((0, 0), (1, 1), (7, 7), (20, 20), (50, 20)):
        assert len(reader.match(g, "alpha", limit)) == given


@documents
def test_match_follows_changes_and_never_shows_tombstones(reader: Any, both: Both, g: str) -> None:
    both.hold([*texts(30), tombstone("never", 1)])
    both.hold([tombstone(f"d{n}", 2) for n in range(0, 30, 2)])
    both.hold([put(Document("d1", "note", "india", "juliett"), 2), put(Document("d2", "note", "india", "again"), 3)])
    for asked in (*WORDS, "india", "juliett", "again"):
        assert sorted(keys(reader.match(g, asked, 100))) == sorted(keys(both.model.match(g, asked, 100)))


@documents
def test_any_words_may_be_asked_for(reader: Any, both: Both, g: str) -> None:
    both.hold(texts(10))
    every = {f"d{n}" for n in range(10)}
    for asked in INPUTS:
        assert set(keys(reader.match(g, asked, 100))) <= every
    for asked in ("", "   ", "!?"):
        assert list(reader.match(g, asked, 100)) == []
    assert len(reader.match(g, "NOT alpha", 100)) == len(both.model.match(g, "alpha", 100))


@documents
def test_nothing_matches_in_another_generation(space: Space, sink: Sink, reader: Any, both: Both) -> None:
    other = space.generation(sink)
    both.hold(texts(5))
    assert list(reader.match(other, " ".join(WORDS), 5)) == []


# --- neighbours, paths, find ---------------------------------------------------------------------------------


def town() -> list[Change]:
    """A small graph: two ways from a to e, edges there and back, a loop, a stub, a tombstone, an island."""
    edges = {
        "a": [("ROAD", "b"), ("RAIL", "c"), ("ROAD", "stub")],
        "b": [("ROAD", "a"), ("ROAD", "c"), ("RAIL", "d"), ("ROAD", "dead")],
        "c": [("ROAD", "d"), ("ROAD", "c")],
        "d": [("ROAD", "e"), ("RAIL", "e")],
        "e": [],
        "island": [("ROAD", "stub")],
        "behind": [("ROAD", "dead")],
    }
    nodes: list[Record] = [
        Node(key, "Place", f"name of {key}", {"n": 1}, [Edge(kind, target) for kind, target in out])
        for key, out in edges.items()
    ]
    dead = Node("dead", "Place", "name of dead", {}, [Edge("ROAD", "e")])
    return [*[put(node, 1) for node in nodes], put(dead, 1)]


@pytest.fixture
def in_town(both: Both) -> Both:
    both.hold(town())
    both.hold([tombstone("dead", 2)])
    return both


def plain(answers: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Neighbours without the store's name."""
    return [(n.key, n.kind, n.name, n.edge, n.direction) for n in answers]


EVERYONE = ["a", "b", "c", "d", "e", "island", "behind", "stub", "dead", "unknown"]


@graphs
@pytest.mark.parametrize("direction", ["out", "in", "both"])
@pytest.mark.parametrize("kinds", [None, ["ROAD"], ["RAIL", "ROAD"], ["road"], ["NONE`)"], []])
def test_the_neighbours_are_those_of_the_model(
    reader: Any, in_town: Both, g: str, direction: str, kinds: list[str] | None
) -> None:
    for key in EVERYONE:
        found = reader.neighbours(g, key, direction, kinds, 100)
        wanted = in_town.model.neighbours(g, key, direction, kinds, 100)
        assert sorted(plain(found)) == sorted(plain(wanted))
        assert [(n.edge, n.key) for n in found] == [(n.edge, n.key) for n in wanted]


@graphs
def test_neighbours_are_no_more_than_asked_for(reader: Any, in_town: Both, g: str) -> None:
    for limit in (0, 1, 2, 3, 4, 50):
        found = reader.neighbours(g, "b", "both", None, limit)
        wanted = in_town.model.neighbours(g, "b", "both", None, limit)
        assert [(n.edge, n.key) for n in found] == [(n.edge, n.key) for n in wanted]


@graphs
@pytest.mark.parametrize("depth", [0, 1, 2, 3, DEPTH_MAX])
def test_the_paths_are_those_of_the_model(reader: Any, in_town: Both, g: str, depth: int) -> None:
    for source in EVERYONE:
        for target in ("a", "e", "island", "dead", "unknown"):
            found = reader.paths(g, source, target, depth, 100)
            wanted = in_town.model.paths(g, source, target, depth, 100)
            assert {(p.nodes, p.edges) for p in found} == {(p.nodes, p.edges) for p in wanted}
            assert [len(p.edges) for p in found] == [len(p.edges) for p in wanted]


@graphs
def test_the_shortest_of_many_paths_come_first(reader: Any, in_town: Both, g: str) -> None:
    for limit in (0, 1, 2, 5):
        found = reader.paths(g, "a", "e", DEPTH_MAX, limit)
        wanted = in_town.model.paths(g, "a", "e", DEPTH_MAX, limit)
        assert [len(p.edges) for p in found] == [len(p.edges) for p in wanted]


@graphs
def test_a_path_through_a_dead_node_or_a_stub_is_no_path(reader: Any, in_town: Both, g: str) -> None:
    assert list(reader.paths(g, "b", "behind", DEPTH_MAX, 10)) == []
    assert list(reader.paths(g, "a", "island", DEPTH_MAX, 10)) == []
    in_town.hold([put(Node("stub", "Place", "built"), 1)])
    assert [p.nodes for p in reader.paths(g, "a", "island", DEPTH_MAX, 10)] == [("a", "stub", "island")]


@graphs
def test_nodes_are_found_by_key_first_then_by_name(reader: Any, both: Both, g: str) -> None:
    named = {"x": "other", "y": "x", "z": "x", "X": "X", "dead": "x"}
    both.hold([put(Node(key, "Place", name, {"n": 1}, [Edge("ROAD", "stub")]), 1) for key, name in named.items()])
    both.hold([tombstone("dead", 2)])
    for name in ("x", "X", "y", "stub", "dead", "unknown", ""):
        assert keys(reader.find(g, name, 10)) == keys(both.model.find(g, name, 10))
    assert keys(reader.find(g, "x", 2)) == ["x", "y"]
    assert list(reader.find(g, "x", 0)) == []


@graphs
def test_a_node_found_tells_what_it_is(store: Store, reader: Any, both: Both, g: str) -> None:
    record = Node("k", "Place", "A name", {"n": 1, "ratio": 0.1, "tags": ["a", "b"]})
    both.hold([put(record, 1)])
    (hit,) = reader.find(g, "A name", 5)
    assert (hit.key, hit.kind, hit.title, hit.store) == ("k", "Place", "A name", store.entry)
    assert hit.properties == record.properties


@graphs
def test_any_key_or_name_may_be_asked_for(reader: Any, both: Both, g: str) -> None:
    both.hold(
        [put(Node(key, "Place", text, {}, [Edge("ROAD", "hub")]), 1) for key, text in zip(KEYS, INPUTS, strict=False)]
    )
    both.hold([put(Node("hub", "Place", "hub"), 1)])
    for asked in INPUTS:
        assert keys(reader.find(g, asked, 100)) == keys(both.model.find(g, asked, 100))
        assert len(reader.neighbours(g, asked, "both", [asked], 5)) == 0
        assert len(reader.neighbours(g, "hub", "both", [asked, "ROAD"], 5)) == 5
        assert len(reader.paths(g, asked, "hub", 2, 5)) == len(both.model.paths(g, asked, "hub", 2, 5))


@graphs
def test_no_node_is_found_in_another_generation(space: Space, sink: Sink, reader: Any, in_town: Both) -> None:
    other = space.generation(sink)
    assert list(reader.find(other, "a", 5)) == []
    assert list(reader.neighbours(other, "a", "both", None, 5)) == []
    assert list(reader.paths(other, "a", "b", 3, 5)) == []


# --- dead stores ---------------------------------------------------------------------------------------------


def ask(store: Store, reader: Any) -> None:
    """One question of each kind that the store answers."""
    if Vector in store.kinds:
        reader.nearest("g1", embedding("v"), 1)
    if Document in store.kinds:
        reader.match("g1", "alpha", 1)
    if Node in store.kinds:
        reader.find("g1", "a", 1)


@pytest.mark.parametrize(
    "store", [s for s in STORES if s.unreachable and s.answers and {Vector, Document, Node} & set(s.kinds)], ids=label
)
def test_a_reader_of_a_store_that_is_not_there_says_so_soon(store: Store, tmp_path: Path) -> None:
    space = Space(store, store.unreachable(tmp_path))
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable), space.open_reader() as reader:
        ask(store, reader)
    assert time.monotonic() - began_s < ANSWERS_WITHIN_S
