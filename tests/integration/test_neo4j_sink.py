"""What is Neo4j's own about what its sink writes and its reader finds, on the real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outbox.errors import RecordsRefused, StoreUnavailable
from projectors.query.neo4j import open_reader
from projectors.record import Change, Edge, Node
from projectors.sinks.neo4j import Neo4jSink
from projectors.sinks.neo4j_session import label_of
from tests.integration.neo4j_store import G, ask, held, put, settings, sink, stored  # noqa: F401


def test_kinds_properties_and_edges_are_there_for_plain_cypher(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(
        G, [put(Node("a", "Class", "A", {"lines": 3}, [Edge("CALLS", "b", {"n": 2})])), put(Node("b", "Function", "f"))]
    )
    found = ask("MATCH (c:LABEL:Class)-[r:CALLS]->(f:Function) RETURN c.name, c.lines, r.n, f.name")
    assert found == [["A", 3, 2, "f"]]


def test_a_changed_kind_takes_the_old_label_away(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(G, [put(Node("a", "Old", "A"))])
    sink.apply(G, [put(Node("a", "New", "A"), 2)])
    assert ask("MATCH (n:LABEL) RETURN 'Old' IN labels(n), 'New' IN labels(n)") == [[False, True]]
    sink.apply(G, [Change("a", "n-a", 3, None)])
    assert ask("MATCH (n:LABEL) RETURN 'New' IN labels(n), n.name") == [[False, None]]


def test_a_kind_named_like_another_generation_does_not_put_the_node_into_it(
    sink: Neo4jSink, projection: str, ask: Any
) -> None:
    sink.prepare("g2")
    sink.apply(G, [put(Node("a", label_of(projection, "g2"), "A")), put(Node("b", "Outbox", "B"))])
    assert list(sink.scan("g2")) == []
    assert len(held(sink)) == 2


@pytest.mark.parametrize(("old", "new"), [(0.0, -0.0), (1, 1.0), (1, True), ([1], [1.0]), ("e\u0301", "\u00e9")])
def test_a_value_replaces_one_that_is_equal_but_not_the_same(sink: Neo4jSink, old: Any, new: Any) -> None:
    sink.apply(G, [put(Node("a", "K", "A", {"p": old}, [Edge("E", "b", {"p": old})]))])
    later = put(Node("a", "K", "A", {"p": new}, [Edge("E", "b", {"p": new})]), 2)
    sink.apply(G, [later])
    assert held(sink) == {stored(later)}


@pytest.mark.parametrize("later", [Node("a", "K", "A"), None], ids=["without edges", "deleted"])
def test_edges_of_a_node_from_before_there_were_hashes_are_cut(sink: Neo4jSink, ask: Any, later: Node | None) -> None:
    sink.apply(G, [put(Node("a", "K", "A", {}, [Edge("E", "b")]))])
    ask("MATCH (n:LABEL) REMOVE n._edges")
    sink.apply(G, [Change("a", "n-a", 2, later)])
    assert ask("MATCH (:LABEL)-[r]->() RETURN count(r)") == [[0]]


def test_a_refused_node_is_named_and_does_not_stop_the_others(sink: Neo4jSink) -> None:
    good = [put(Node(f"k{n}", "K", "n", {}, [Edge("E", f"k{n + 1}")])) for n in range(20)]
    bad = [
        put(Node("no edge kind", "K", "n", {}, [Edge("", "k1")])),
        put(Node("k" * 9_000, "K", "n")),
        put(Node("surrogate", "K", "\ud800")),
    ]
    with pytest.raises(RecordsRefused) as raised:
        sink.apply(G, [*good[:7], *bad, *good[7:]])
    assert raised.value.reasons.keys() == {change.key for change in bad}
    assert held(sink) == {stored(change) for change in good}


@pytest.mark.parametrize("later", [True, False], ids=["dropped", "never prepared"])
def test_a_generation_that_is_not_there_has_no_answers(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], later: bool
) -> None:
    if later:
        sink.drop(G)
    g = G if later else "g2"
    with open_reader(projection, settings) as reader:
        questions: tuple[Callable[[], object], ...] = (
            lambda: list(sink.scan(g)),
            lambda: list(sink.scan(g, ["a"])),
            lambda: sink.sums(g),
            lambda: list(sink.scan_slices(g, [1])),
            lambda: reader.find(g, "a", 1),
            lambda: reader.neighbours(g, "a", "both", None, 1),
            lambda: reader.paths(g, "a", "b", 2, 1),
        )
        for question in questions:
            with pytest.raises(StoreUnavailable, match="has not been prepared"):
                question()


def test_a_late_write_to_a_dropped_generation_leaves_nothing(sink: Neo4jSink, ask: Any) -> None:
    sink.drop(G)
    with pytest.raises(StoreUnavailable):
        sink.apply(G, [put(Node("a", "K", "A"))])
    assert ask("MATCH (n:LABEL) RETURN count(n)") == [[0]]


def test_edges_that_come_to_a_node_that_was_there_join_it_to_new_and_old_ends(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(G, [put(Node("a", "K", "A")), put(Node("b", "K", "B")), put(Node("c", "K", "C"))])
    later = [
        put(Node("a", "K", "A", {}, [Edge("E", "b", {"n": 1}), Edge("F", "new"), Edge("E", "a")]), 2),
        put(Node("new", "K", "N", {}, [Edge("E", "c"), Edge("E", "stub"), Edge("E", "new")])),
    ]
    sink.apply(G, later)
    assert held(sink) >= {stored(change) for change in later}
    assert ask("MATCH (n:LABEL) WHERE n._lock IS NOT NULL RETURN count(n)") == [[0]]
    assert ask("MATCH (n:LABEL) WHERE NOT n:Outbox RETURN count(n)") == [[0]]


def test_one_generation_is_marked_as_serving(sink: Neo4jSink, projection: str, ask: Any) -> None:
    sink.prepare("g2")
    for generation in (G, "g2", G):
        sink.switch(generation)
        serving = ask("MATCH (g:OutboxGeneration {projection: $p, serving: true}) RETURN g.label", p=projection)
        assert serving == [[label_of(projection, generation)]]


def test_what_someone_else_changed_is_seen_by_a_scan(sink: Neo4jSink, ask: Any) -> None:
    change = put(Node("a", "K", "A", {"p": 1}, [Edge("E", "b")]))
    sink.apply(G, [change])
    for spoil in ("SET n.p = 2", "SET n.q = date()", "REMOVE n.name", "CREATE (n)-[:E]->(n)"):
        ask(f"MATCH (n:LABEL {{_key: 'a'}}) {spoil}")
        assert held(sink) != {stored(change)}
        ask("MATCH (n:LABEL {_key: 'a'}) OPTIONAL MATCH (n)-[r]->(n) SET n.p = 1, n.name = 'A' REMOVE n.q DELETE r")
        assert held(sink) == {stored(change)}


def test_a_name_too_long_for_the_index_is_found_whole_only(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    name = "é" * 20_000
    sink.apply(G, [put(Node("a", "K", name))])
    with open_reader(projection, settings) as reader:
        assert [hit.key for hit in reader.find(G, name, 5)] == ["a"]
        assert reader.find(G, name[:1_000], 5) == reader.find(G, name + "x", 5) == []


def test_two_ends_without_a_path_are_told_apart_soon(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    def web(side: str) -> list[Change]:
        ends = [f"{side}{n}" for n in range(60)]
        return [put(Node(k, "K", k, {}, [Edge("E", other) for other in ends if other != k])) for k in ends]

    sink.apply(G, web("a") + web("b"))
    with open_reader(projection, settings | {"timeout_s": 10}) as reader:
        assert reader.paths(G, "a1", "b1", 6, 10) == []
        assert [len(path.edges) for path in reader.paths(G, "a1", "a2", 6, 10)] == [1] + [2] * 9
