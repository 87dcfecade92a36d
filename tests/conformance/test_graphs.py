"""What every sink of graph nodes must do about edges, above all those that come before their nodes."""

from __future__ import annotations

import itertools

from projectors.record import Change, Edge, Node
from projectors.sinks.protocol import Sink
from tests.conformance.sinks import expected, held, put, tombstone, with_kind

graphs = with_kind(Node)


def node(key: str, *targets: str | Edge, name: str = "") -> Node:
    edges = [target if isinstance(target, Edge) else Edge("POINTS_AT", target) for target in targets]
    return Node(key, "Kind", name or f"name of {key}", {"p": 1}, edges)


@graphs
def test_the_target_of_an_edge_is_hidden_until_its_node_comes(sink: Sink, g: str) -> None:
    source, target = put(node("a", "b"), 1), put(node("b"), 1)
    sink.apply(g, [source])
    assert held(sink, g) == expected([source])
    assert held(sink, g, ["b"]) == {}
    sink.apply(g, [target])
    assert held(sink, g) == expected([source, target])


@graphs
def test_edge_and_node_in_one_batch_may_come_in_either_order(sink: Sink, g: str) -> None:
    one = [put(node("a", "b"), 1), put(node("b", "c"), 1), put(node("c", "a"), 1)]
    sink.apply(g, one)
    assert held(sink, g) == expected(one)
    other = [put(node("z", "y"), 1), put(node("y", "x"), 1), put(node("x"), 1)][::-1]
    sink.apply(g, other)
    assert held(sink, g) == expected(one + other)


@graphs
def test_a_deleted_node_that_is_still_pointed_at_is_hidden_and_may_live_again(sink: Sink, g: str) -> None:
    source, again = put(node("a", "b"), 1), put(node("b", name="again"), 5)
    sink.apply(g, [source, put(node("b"), 1)])
    sink.apply(g, [tombstone("b", 4)])
    assert held(sink, g) == expected([source])
    sink.apply(g, [put(node("b"), 3)])
    assert held(sink, g) == expected([source])
    sink.apply(g, [again])
    assert held(sink, g) == expected([source, again])


@graphs
def test_a_stub_keeps_the_mark_of_a_tombstone(sink: Sink, g: str) -> None:
    source = put(node("a", "b"), 1)
    sink.apply(g, [source, tombstone("b", 7)])
    sink.apply(g, [put(node("b"), 6)])
    assert held(sink, g) == expected([source])


@graphs
def test_a_tombstone_before_any_edge_still_stands_when_an_edge_comes(sink: Sink, g: str) -> None:
    source = put(node("a", "b"), 1)
    sink.apply(g, [tombstone("b", 7)])
    sink.apply(g, [source])
    sink.apply(g, [put(node("b"), 6)])
    assert held(sink, g) == expected([source])


@graphs
def test_edges_come_change_and_go_with_the_node_that_owns_them(sink: Sink, g: str) -> None:
    stages = [
        node("a", "b", "c"),
        node("a", "c"),
        node("a", Edge("POINTS_AT", "c", {"weight": 1.5})),
        node("a", Edge("POINTS_AT", "c", {"other": "x"}), "d"),
        node("a", Edge("KNOWS", "c")),
        node("a"),
        node("a", "b"),
    ]
    for version, stage in enumerate(stages, start=1):
        sink.apply(g, [put(stage, version)])
        assert held(sink, g) == expected([put(stage, version)])


@graphs
def test_a_deleted_node_loses_its_edges(sink: Sink, g: str) -> None:
    again = put(node("a", "c"), 3)
    sink.apply(g, [put(node("a", "b", Edge("KNOWS", "c")), 1)])
    sink.apply(g, [tombstone("a", 2)])
    assert held(sink, g) == {}
    sink.apply(g, [again])
    assert held(sink, g) == expected([again])


@graphs
def test_an_edge_outlives_changes_of_the_node_it_points_at(sink: Sink, g: str) -> None:
    source = put(node("a", "b"), 1)
    sink.apply(g, [source])
    for change in (put(node("b"), 1), put(node("b", "a"), 2), tombstone("b", 3), put(node("b", name="new"), 4)):
        sink.apply(g, [change])
        assert held(sink, g, ["a"]) == expected([source])


@graphs
def test_nodes_that_point_at_the_same_target_do_not_share_edges(sink: Sink, g: str) -> None:
    kept = put(node("b", "t"), 1)
    sink.apply(g, [put(node("a", "t"), 1), kept])
    sink.apply(g, [put(node("a"), 2)])
    assert held(sink, g) == expected([kept, put(node("a"), 2)])
    sink.apply(g, [tombstone("a", 3)])
    assert held(sink, g) == expected([kept])


@graphs
def test_edges_of_several_kinds_join_the_same_two_nodes(sink: Sink, g: str) -> None:
    changes = [put(node("a", "b", Edge("KNOWS", "b", {"p": 2}), Edge("knows", "b")), 1), put(node("b", "a"), 1)]
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)
    fewer = put(node("a", Edge("KNOWS", "b", {"p": 2})), 2)
    sink.apply(g, [fewer])
    assert held(sink, g) == expected([*changes, fewer])


@graphs
def test_a_node_may_point_at_itself(sink: Sink, g: str) -> None:
    loop, again = put(node("a", "a", Edge("KNOWS", "a")), 1), put(node("a", "a"), 3)
    sink.apply(g, [loop])
    assert held(sink, g) == expected([loop])
    sink.apply(g, [tombstone("a", 2)])
    assert held(sink, g) == {}
    sink.apply(g, [again])
    assert held(sink, g) == expected([again])


@graphs
def test_a_node_points_at_many(sink: Sink, g: str) -> None:
    changes = [put(node("hub", *[f"t{n}" for n in range(500)]), 1)]
    changes += [put(node(f"t{n}", "hub"), 1) for n in range(0, 500, 7)]
    sink.apply(g, changes)
    assert held(sink, g) == expected(changes)
    fewer = put(node("hub", *[f"t{n}" for n in range(0, 500, 2)]), 2)
    sink.apply(g, [fewer])
    assert held(sink, g) == expected([*changes, fewer])


@graphs
def test_every_order_of_a_small_history_ends_the_same(sink: Sink, g: str) -> None:
    def story(run: int) -> list[Change]:
        a, b = f"a{run}", f"b{run}"
        return [put(node(a, b), 1), put(node(a, b, Edge("KNOWS", a)), 2), put(node(b, a), 1), tombstone(b, 2)]

    everything: list[Change] = []
    for run, order in enumerate(itertools.permutations(range(4))):
        for step in order:
            sink.apply(g, [story(run)[step]])
        everything += story(run)
    assert held(sink, g) == expected(everything)
