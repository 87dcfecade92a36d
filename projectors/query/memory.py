"""The reference reader: every question answered by looking at all that the memory sink holds.

It defines what the other readers' answers are compared with. Settings are those of
:mod:`projectors.sinks.memory`.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from outbox.errors import StoreUnavailable
from projectors.query.protocol import DEPTH_MAX, Direction, Hit, Neighbour, Path
from projectors.record import Document, Node, Vector
from projectors.sinks.memory import Space, live, space_of

STORE: Final = "memory"
SNIPPET_LENGTH: Final = 160
TITLE_WEIGHT: Final = 3

_WORD: Final = re.compile(r"\w+")


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[MemoryReader]:
    """A reader of the space that ``settings`` name."""
    reader = MemoryReader(space_of(projection, settings))
    try:
        yield reader
    finally:
        reader.close()


class MemoryReader:
    """All three protocols of :mod:`projectors.query.protocol`. Closed, it raises ``StoreUnavailable``."""

    def __init__(self, space: Space) -> None:
        self._space: Space | None = space

    def close(self) -> None:
        self._space = None

    def nearest(self, generation: str, embedding: Sequence[float], limit: int) -> Sequence[Hit]:
        """Exact; the cosine with a vector of length zero is 0."""
        vectors = [r for r in live(self._opened(), generation) if isinstance(r, Vector)]
        return _best(
            [_vector_hit(v, _cosine(embedding, v.embedding)) for v in vectors if v.embedding is not None], limit
        )

    def match(self, generation: str, text: str, limit: int) -> Sequence[Hit]:
        """Scored by how often the words come, a title's three times as much."""
        words = set(_words(text))
        documents = [r for r in live(self._opened(), generation) if isinstance(r, Document)]
        hits = [_document_hit(document, _matches(document, words)) for document in documents]
        return _best([hit for hit in hits if hit.score > 0], limit)

    def neighbours(
        self, generation: str, key: str, direction: Direction, edges: Sequence[str] | None, limit: int
    ) -> Sequence[Neighbour]:
        """With ``both``, an edge of a node to itself is given both ways."""
        nodes = _nodes(self._opened(), generation)
        found = [n for n in _around(nodes, key) if direction in (n.direction, "both")]
        taken = [n for n in found if edges is None or n.edge in edges]
        return sorted(taken, key=lambda n: (n.edge, n.key, n.direction == "in"))[: max(limit, 0)]

    def paths(self, generation: str, source: str, target: str, depth: int, limit: int) -> Sequence[Path]:
        """Every path without repeated nodes, by length, then nodes, then edges. A node's path to itself is the
        node alone; edges of one kind there and back make one path."""
        nodes = _nodes(self._opened(), generation)
        if source not in nodes or target not in nodes or depth < 0:
            return []
        found = set(_walks(nodes, source, target, min(depth, DEPTH_MAX)))
        return sorted(found, key=lambda p: (len(p.edges), p.nodes, p.edges))[: max(limit, 0)]

    def find(self, generation: str, name: str, limit: int) -> Sequence[Hit]:
        """By key with score 2, by name with score 1 in the order of the keys."""
        named = [n for n in _nodes(self._opened(), generation).values() if name in (n.key, n.name)]
        return _best([_node_hit(node, 2.0 if node.key == name else 1.0) for node in named], limit)

    def _opened(self) -> Space:
        if self._space is None:
            raise StoreUnavailable("the memory store is closed")
        return self._space


def _best(hits: Sequence[Hit], limit: int) -> Sequence[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.key))[: max(limit, 0)]


def _cosine(one: Sequence[float], two: Sequence[float]) -> float:
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _matches(document: Document, words: set[str]) -> float:
    counts = Counter(_words(document.text))
    for word in _words(document.title):
        counts[word] += TITLE_WEIGHT
    return float(sum(counts[word] for word in words))


def _nodes(space: Space, generation: str) -> dict[str, Node]:
    return {record.key: record for record in live(space, generation) if isinstance(record, Node)}


def _around(nodes: Mapping[str, Node], key: str) -> Iterator[Neighbour]:
    if key not in nodes:
        return
    for edge in nodes[key].edges:
        if edge.target in nodes:
            other = nodes[edge.target]
            yield Neighbour(other.key, other.kind, other.name, edge.kind, "out", STORE)
    for other in nodes.values():
        for edge in other.edges:
            if edge.target == key:
                yield Neighbour(other.key, other.kind, other.name, edge.kind, "in", STORE)


def _walks(nodes: Mapping[str, Node], source: str, target: str, depth: int) -> Iterator[Path]:
    waiting = deque([Path((source,), (), STORE)])
    while waiting:
        path = waiting.popleft()
        if path.nodes[-1] == target:
            yield path
        elif len(path.edges) < depth:
            steps = [step for step in _around(nodes, path.nodes[-1]) if step.key not in path.nodes]
            waiting.extend(Path((*path.nodes, step.key), (*path.edges, step.edge), STORE) for step in steps)


def _vector_hit(vector: Vector, score: float) -> Hit:
    of = {name: value for name, value in vector.metadata.items() if isinstance(value, str)}
    title = of.get("title", of.get("name", ""))
    return Hit(vector.key, score, STORE, of.get("kind", ""), title, vector.text[:SNIPPET_LENGTH], vector.metadata)


def _document_hit(document: Document, score: float) -> Hit:
    snippet = document.text[:SNIPPET_LENGTH]
    return Hit(document.key, score, STORE, document.kind, document.title, snippet, document.properties)


def _node_hit(node: Node, score: float) -> Hit:
    return Hit(node.key, score, STORE, node.kind, node.name, "", node.properties)
