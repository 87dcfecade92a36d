"""The shortest simple paths between two nodes of a graph that is asked for one neighbourhood at a time.

Bidirectional breadth-first search (I. Pohl, "Bi-directional search", 1971): of the two frontiers the smaller
is opened, one step at a time, and after each step the paths of exactly the length that is now covered are
counted out. So near nodes are answered at once, and a hub is opened only if nothing else is left to open.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise, product
from typing import Final

Link = tuple[str, str]
"""The node at the other end, and the edge's kind."""
Around = Callable[[str], Iterable[Link]]
Found = tuple[tuple[str, ...], tuple[str, ...]]
"""A path's nodes and its edges' kinds."""

OPENED_MAX: Final = 2_000
"""Nodes whose neighbourhoods are asked for, per search."""
STEPS_MAX: Final = 200_000
"""Steps of counting out, per search: simple paths can be exponentially many."""


class Search:
    """One search. Bounded in questions and in steps; a graph too dense for that gives the paths found so far."""

    def __init__(self, around: Around, source: str, target: str) -> None:
        self._around = around
        self._source = source
        self._target = target
        self._links: defaultdict[str, set[Link]] = defaultdict(set)
        self._seen = ({source}, {target})
        self._fronts = [[source], [target]]
        self._opened: set[str] = set()
        self._steps = STEPS_MAX

    def shortest(self, depth: int, limit: int) -> list[Found]:
        """At most ``limit`` paths of at most ``depth`` edges: by length, then by nodes, then by edges."""
        found: list[Found] = []
        for length in range(1, depth + 1):
            if len(found) >= limit or not self._widen():
                break
            found += islice(self._of_length(length), limit - len(found))
        return found

    def _widen(self) -> bool:
        """Open the smaller frontier; False if no longer path can be found: all is seen, or too much is."""
        side = min((0, 1), key=lambda one: (len(self._fronts[one]), len(self._seen[one])))
        if not self._fronts[side]:
            return self._target in self._seen[0] or self._source in self._seen[1]
        if len(self._opened) >= OPENED_MAX:
            return False
        self._fronts[side] = self._beyond(self._fronts[side], self._seen[side])
        return True

    def _beyond(self, front: list[str], seen: set[str]) -> list[str]:
        """Open the nodes of the frontier and return the next one."""
        following: dict[str, None] = {}
        for key in front:
            self._open(key)
            following.update((other, None) for other, _ in self._links[key] if other not in seen)
        seen.update(following)
        return list(following)

    def _open(self, key: str) -> None:
        if key in self._opened or len(self._opened) >= OPENED_MAX:
            return
        self._opened.add(key)
        for other, edge in self._around(key):
            self._links[key].add((other, edge))
            self._links[other].add((key, edge))

    def _of_length(self, length: int) -> Iterator[Found]:
        """The simple paths of exactly this length in what is known, in order. Depth first, never into a node
        that is too far from the target."""
        distances = self._distances(length)
        if distances.get(self._source, length + 1) <= length:
            for nodes in self._walk((self._source,), length, distances):
                yield from ((nodes, edges) for edges in self._kinds(nodes))

    def _walk(self, path: tuple[str, ...], left: int, distances: dict[str, int]) -> Iterator[tuple[str, ...]]:
        links = self._links[path[-1]]
        self._steps -= len(links)
        for other in sorted({other for other, _ in links if distances.get(other, left) < left}):
            if self._steps <= 0:
                return
            if other == self._target:
                if left == 1:
                    yield (*path, other)
            elif other not in path:
                yield from self._walk((*path, other), left - 1, distances)

    def _kinds(self, nodes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Every way to choose one edge between each two nodes, in order."""
        return product(
            *(sorted(edge for key, edge in self._links[one] if key == other) for one, other in pairwise(nodes))
        )

    def _distances(self, most: int) -> dict[str, int]:
        """Edges to the target, of the known nodes at most ``most`` away."""
        distances = {self._target: 0}
        waiting = deque([self._target])
        while waiting:
            key = waiting.popleft()
            if distances[key] < most:
                new = [other for other, _ in self._links[key] if other not in distances]
                distances.update(dict.fromkeys(new, distances[key] + 1))
                waiting.extend(dict.fromkeys(new))
        return distances
