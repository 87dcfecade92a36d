"""Questions of neighbourhood, path and name to the embedded graph.

Paths are searched here, a neighbourhood at a time (:mod:`projectors.query.shortest`): Ladybug's own shortest
path over all edges took 0.5 s in a graph where this takes milliseconds, and knows no limit on a hub.
Settings are the sink's (:func:`projectors.sinks.ladybug_graph.open_session`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson

from projectors.query.protocol import DEPTH_MAX, Direction, Hit, Neighbour, Path, answering
from projectors.query.shortest import Link, Search
from projectors.record import storable
from projectors.sinks.ladybug_graph import Session, open_session

STORE: Final = "ladybug"
ROWS_MAX: Final = 10_000
"""The most a question gives back, whatever the limit asked for, and the most edges of a node a path may use."""

_OUT: Final = "(a:{node} {{key: $key}})-[e:{edge}]->(b:{node})"
_IN: Final = "(a:{node} {{key: $key}})<-[e:{edge}]-(b:{node})"
_EITHER: Final = "(a:{node} {{key: $key}})-[e:{edge}]-(b:{node})"
_NEIGHBOURS: Final = """
MATCH PATTERN WHERE a.live AND b.live AND ($every OR e.kind IN $kinds)
RETURN b.key, b.kind, b.name, e.kind AS edge ORDER BY edge, b.key"""
_LINKS: Final = f"MATCH {_EITHER} WHERE b.live RETURN b.key, e.kind"
_HIT: Final = "a.key, a.kind, a.name, a.properties"
_BY_KEY: Final = f"MATCH (a:{{node}} {{{{key: $name}}}}) WHERE a.live RETURN {_HIT}"
_BY_NAME: Final = f"""
MATCH (a:{{node}}) WHERE a.name = $name AND a.live AND a.key <> $name RETURN {_HIT} ORDER BY a.key"""


class LadybugReader:
    """A :class:`projectors.query.protocol.GraphReader`; may be asked by several threads, one is answered at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    def neighbours(
        self, generation: str, key: str, direction: Direction, edges: Sequence[str] | None, limit: int
    ) -> Sequence[Neighbour]:
        """With ``both``, an edge of a node to itself is given both ways."""
        kinds = [kind for kind in edges or () if storable(kind)]
        if limit < 1 or not storable(key) or (edges is not None and not kinds):
            return []
        asked = {"key": key, "every": edges is None, "kinds": kinds or [""]}
        found: list[Neighbour] = []
        if direction != "in":
            rows = self._rows(_NEIGHBOURS.replace("PATTERN", _OUT), generation, limit, **asked)
            found += (Neighbour(other, kind, name, edge, "out", STORE) for other, kind, name, edge in rows)
        if direction != "out":
            rows = self._rows(_NEIGHBOURS.replace("PATTERN", _IN), generation, limit, **asked)
            found += (Neighbour(other, kind, name, edge, "in", STORE) for other, kind, name, edge in rows)
        return sorted(found, key=lambda n: (n.edge, n.key, n.direction == "in"))[:limit]

    def paths(self, generation: str, source: str, target: str, depth: int, limit: int) -> Sequence[Path]:
        """By length, then nodes, then edges. A node's path to itself is the node alone. In a graph too dense to
        search (see :mod:`projectors.query.shortest`), those found within its bounds."""
        there = all(self._by_key(generation, key) for key in (source, target))
        if limit < 1 or depth < 0 or not there:
            return []
        if source == target:
            return [Path((source,), (), STORE)]
        search = Search(lambda key: self._links(generation, key), source, target)
        return [Path(*found, STORE) for found in search.shortest(min(depth, DEPTH_MAX), min(limit, ROWS_MAX))]

    def find(self, generation: str, name: str, limit: int) -> Sequence[Hit]:
        """By key with score 2, by name with score 1 in the order of the keys. Names have no index: they are read
        through, a million in about a second."""
        if limit < 1 or not storable(name):
            return []
        found = [_hit(row, 2.0) for row in self._by_key(generation, name)]
        named = self._rows(_BY_NAME, generation, limit, name=name)
        return (found + [_hit(row, 1.0) for row in named])[:limit]

    def _by_key(self, generation: str, key: str) -> list[list[Any]]:
        return self._rows(_BY_KEY, generation, 1, name=key) if storable(key) else []

    def _links(self, generation: str, key: str) -> Iterator[Link]:
        return ((other, edge) for other, edge in self._rows(_LINKS, generation, ROWS_MAX, key=key))

    def _rows(self, template: str, generation: str, limit: int, **parameters: Any) -> list[list[Any]]:
        with answering(), self._lock:
            return self._session.rows(template, generation, min(limit, ROWS_MAX), **parameters)


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[LadybugReader]:
    """A reader of one projection; sinks and readers of one process share the database."""
    with open_session(projection, settings) as session:
        yield LadybugReader(session)


def _hit(row: Sequence[Any], score: float) -> Hit:
    key, kind, name, properties = row
    return Hit(key, score, STORE, kind=kind, title=name, properties=orjson.loads(properties))
