"""Questions of neighbourhood, path and name to Neo4j.

Settings are the sink's (see :mod:`projectors.sinks.neo4j`). ``paths`` needs Cypher 25 with acyclic path
selectors (Neo4j 2026); the rest works from 5.26 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import neo4j
from neo4j.exceptions import DriverError, Neo4jError

from projectors.query.protocol import DEPTH_MAX, Direction, Hit, Neighbour, Path, answering
from projectors.record import storable
from projectors.sinks.neo4j_form import NAME_LENGTH_MAX, rebuilt
from projectors.sinks.neo4j_session import Connection, cypher, label_of, parse

STORE: Final = "neo4j"
ROWS_MAX: Final = 10_000
"""The most any question gives back, whatever the limit asked for."""

_OUT: Final = """
MATCH (n:LABEL {_key: $key})-[r]->(m:LABEL)
WHERE n._live AND m._live AND ($edges IS NULL OR type(r) IN $edges)
RETURN m._key AS key, m._kind AS kind, coalesce(m._name, m.name) AS name, type(r) AS edge, 'out' AS direction
ORDER BY edge, key LIMIT $limit
"""
_IN: Final = _OUT.replace("-[r]->", "<-[r]-").replace("'out'", "'in'")
_NEIGHBOURS: Final[Mapping[Direction, str]] = {"out": _OUT, "in": _IN, "both": f"{_OUT}UNION ALL{_IN}"}
# An exhaustive search for simple paths is exponential where there is none: a plain one, which is not, goes first.
_LINKED: Final = """
MATCH p = SHORTEST 1 (a:LABEL {_key: $source} WHERE a._live)
    (()--(x:LABEL WHERE x._live)){1,DEPTH} (b:LABEL {_key: $target})
RETURN length(p) AS length
"""
_PATHS: Final = """
CYPHER 25 MATCH p = SHORTEST $limit ACYCLIC PATHS (a:LABEL {_key: $source} WHERE a._live)
    (()--(x:LABEL WHERE x._live)){1,DEPTH} (b:LABEL {_key: $target})
RETURN [n IN nodes(p) | n._key] AS nodes, [r IN relationships(p) | type(r)] AS edges
"""
_BY_KEY: Final = "MATCH (n:LABEL {_key: $name}) WHERE n._live RETURN properties(n) AS properties, 2.0 AS score"
_FOUND: Final = f"""
{_BY_KEY}
UNION ALL
MATCH (n:LABEL {{name: $indexed}})
WHERE n._live AND coalesce(n._name, n.name) = $name AND n._key <> $name
RETURN properties(n) AS properties, 1.0 AS score ORDER BY n._key LIMIT $limit
"""


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[Neo4jReader]:
    """The reader of one projection. Opens no connection yet; raises :class:`~outbox.errors.SettingsError`."""
    with Connection(parse(settings)) as connection:
        yield Neo4jReader(connection, projection)


class Neo4jReader:
    """A :class:`projectors.query.protocol.GraphReader`."""

    def __init__(self, connection: Connection, projection: str) -> None:
        self._connection = connection
        self._projection = projection

    def neighbours(
        self, generation: str, key: str, direction: Direction, edges: Sequence[str] | None, limit: int
    ) -> Sequence[Neighbour]:
        """The live nodes one edge away. With ``both``, an edge of a node to itself is given both ways."""
        if limit < 1 or not storable(key):
            return []
        kinds = None if edges is None else [kind for kind in edges if storable(kind)]
        rows = self._read(generation, _NEIGHBOURS[direction], key=key, edges=kinds, limit=min(limit, ROWS_MAX))
        found = [Neighbour(**row, store=STORE) for row in rows]
        return sorted(found, key=lambda n: (n.edge, n.key))[:limit]

    def paths(self, generation: str, source: str, target: str, depth: int, limit: int) -> Sequence[Path]:
        """Shortest first, then by nodes and edges. A node's path to itself is the node alone.

        Raises :class:`~outbox.errors.StoreUnavailable` if the search does not end within ``timeout_s``.
        """
        depth, limit = min(depth, DEPTH_MAX), min(limit, ROWS_MAX)
        if limit < 1 or depth < 0 or not (storable(source) and storable(target)):
            return []
        if source == target:
            return [Path((source,), (), STORE)] if self._read(generation, _BY_KEY, name=source) else []
        ends = {"source": source, "target": target}
        if depth < 1 or not self._read(generation, _LINKED.replace("DEPTH", str(depth)), **ends):
            return []
        return self._distinct_paths(generation, _PATHS.replace("DEPTH", str(depth)), ends, limit)

    def _distinct_paths(self, generation: str, statement: str, ends: Mapping[str, str], limit: int) -> Sequence[Path]:
        """Two edges of one kind between two nodes (there and back) make one path here, so ask for more until
        there are enough or no more."""
        asked = limit
        while True:
            rows = self._read(generation, statement, **ends, limit=asked)
            found = {Path(tuple(row["nodes"]), tuple(row["edges"]), STORE) for row in rows}
            if len(found) >= limit or len(rows) < asked or asked >= ROWS_MAX:
                return sorted(found, key=lambda p: (len(p.edges), p.nodes, p.edges))[:limit]
            asked = min(asked * 4, ROWS_MAX)

    def find(self, generation: str, name: str, limit: int) -> Sequence[Hit]:
        """The live nodes of that key (score 2) or name (score 1, in the order of their keys)."""
        if limit < 1 or not storable(name):
            return []
        wanted = {"name": name, "indexed": name[:NAME_LENGTH_MAX], "limit": min(limit, ROWS_MAX)}
        hits = [_hit(**row) for row in self._read(generation, _FOUND, **wanted)]
        return sorted(hits, key=lambda hit: -hit.score)[:limit]  # no order of the parts of a UNION ALL is promised

    def _read(self, generation: str, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """The answer's rows.

        Asked in one message; in a transaction of its own, which takes three and is tried again, if that fails by what
        may pass (a connection that the server has closed since).
        """
        label = label_of(self._projection, generation)
        text = cypher(statement, label)
        timeout_s = self._connection.settings.timeout_s
        with answering():
            with self._connection.session("read") as session:
                try:
                    rows = [row.data() for row in session.run(neo4j.Query(text, timeout=timeout_s), parameters)]
                except (Neo4jError, DriverError) as error:
                    if not error.is_retryable():
                        raise
                    rows = session.execute_read(neo4j.unit_of_work(timeout=timeout_s)(_rows), text, parameters)
            if not rows:
                self._connection.check_prepared(label)
            return rows


def _rows(tx: neo4j.ManagedTransaction, text: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row.data() for row in tx.run(text, dict(parameters))]


def _hit(properties: Mapping[str, Any], score: float) -> Hit:
    node = rebuilt(properties, ())
    return Hit(node.key, score, STORE, kind=node.kind, title=node.name, properties=node.properties)
