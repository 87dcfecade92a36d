"""The path search, against counting every simple path out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from projectors.query import shortest
from projectors.query.shortest import Found, Link, Search

EDGES = st.lists(st.tuples(st.integers(0, 7), st.sampled_from("AB"), st.integers(0, 7)), max_size=24)


def around_of(edges: list[tuple[int, str, int]]) -> dict[str, set[Link]]:
    links: dict[str, set[Link]] = {}
    for one, kind, other in edges:
        links.setdefault(str(one), set()).add((str(other), kind))
        links.setdefault(str(other), set()).add((str(one), kind))
    return links


def every_path(links: dict[str, set[Link]], source: str, target: str, depth: int) -> list[Found]:
    found: list[Found] = []
    waiting: list[Found] = [((source,), ())]
    while waiting:
        nodes, kinds = waiting.pop()
        if nodes[-1] == target:
            found.append((nodes, kinds))
        elif len(kinds) < depth:
            steps = [link for link in links.get(nodes[-1], ()) if link[0] not in nodes]
            waiting += [((*nodes, other), (*kinds, kind)) for other, kind in steps]
    return sorted(found, key=lambda path: (len(path[1]), path))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(edges=EDGES, depth=st.integers(0, 6), limit=st.integers(1, 40))
def test_the_paths_are_the_first_of_all_simple_paths(edges: list[tuple[int, str, int]], depth: int, limit: int) -> None:
    links = around_of(edges)
    found = Search(lambda key: links.get(key, ()), "0", "7").shortest(depth, limit)
    assert found == every_path(links, "0", "7", depth)[:limit]


def test_a_hub_is_not_opened_for_what_lies_on_both_sides_of_it() -> None:
    links = {"a": [("hub", "E")], "b": [("hub", "E")], "hub": [(f"n{n}", "E") for n in range(100_000)]}
    opened: list[str] = []

    def around(key: str) -> list[Link]:
        opened.append(key)
        return links[key]

    assert Search(around, "a", "b").shortest(2, 5) == [(("a", "hub", "b"), ("E", "E"))]
    assert opened == ["a", "b"]


def test_a_search_in_a_vast_graph_opens_no_more_than_its_bound() -> None:
    opened: list[str] = []

    def around(key: str) -> list[Link]:
        opened.append(key)
        return [(f"{key}.{n}", "E") for n in range(50)]

    assert Search(around, "a", "b").shortest(6, 5) == []
    assert len(opened) == shortest.OPENED_MAX


def test_counting_out_a_dense_graph_ends_at_its_bound() -> None:
    many = [f"n{n}" for n in range(60)]
    links = {key: [(other, "E") for other in many if other != key] for key in many}
    found = Search(lambda key: links[key], "n0", "n1").shortest(6, 10**9)
    assert found[0] == (("n0", "n1"), ("E",))
    assert len(found) <= shortest.STEPS_MAX
