"""Neo4j's UNWIND with a uniqueness constraint: CREATE for what is new, SET and MERGE of edges for what is there.

All nodes go before all edges, so that no edge waits for its ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import neo4j

from benchmarks.entities import KIND, LINK
from benchmarks.natives import Native, parts
from projectors.record import Node

_CREATE: Final = f"UNWIND $rows AS row CREATE (n:`LABEL`:{KIND}) SET n = row"
_SET: Final = "UNWIND $rows AS row MATCH (n:`LABEL` {key: row.key}) SET n = row"
_ENDS: Final = "UNWIND $rows AS row MATCH (a:`LABEL` {key: row[0]}) MATCH (b:`LABEL` {key: row[1]}) "
_JOIN: Final = _ENDS + f"CREATE (a)-[:{LINK}]->(b)"
_MERGE: Final = _ENDS + f"MERGE (a)-[:{LINK}]->(b)"


class Neo4jNative:
    def __init__(self, session: neo4j.Session, label: str) -> None:
        self._session = session
        self._label = label

    def load(self, records: Sequence[Node], batch: int) -> None:
        self._send(_CREATE, [_row(record) for record in records], batch)
        self._send(_JOIN, _edges(records), batch)

    def update(self, records: Sequence[Node], batch: int) -> None:
        self._send(_SET, [_row(record) for record in records], batch)
        self._send(_MERGE, _edges(records), batch)

    def count(self) -> int:
        return int(self._run("MATCH (n:`LABEL`) RETURN count(*) AS n").single(strict=True)["n"])

    def prepare(self) -> None:
        self._run("CREATE CONSTRAINT `LABEL` FOR (n:`LABEL`) REQUIRE n.key IS UNIQUE").consume()
        self._run("CREATE INDEX `LABEL name` FOR (n:`LABEL`) ON (n.name)").consume()
        self._run("CALL db.awaitIndexes(60)").consume()

    def drop(self) -> None:
        self._run("MATCH (n:`LABEL`) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 1000 ROWS").consume()
        self._run("DROP INDEX `LABEL name`").consume()
        self._run("DROP CONSTRAINT `LABEL`").consume()

    def _send(self, statement: str, rows: Sequence[Any], batch: int) -> None:
        for part in parts(rows, batch):
            self._run(statement, rows=part).consume()

    def _run(self, statement: str, **parameters: Any) -> neo4j.Result:
        return self._session.run(statement.replace("LABEL", self._label), parameters)


def _row(record: Node) -> dict[str, Any]:
    return {**record.properties, "key": record.key, "name": record.name}


def _edges(records: Sequence[Node]) -> list[list[str]]:
    return [[record.key, edge.target] for record in records for edge in record.edges]


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    driver = neo4j.GraphDatabase.driver(settings["url"], notifications_min_severity="OFF")
    with driver, driver.session() as session:
        native = Neo4jNative(session, name)
        native.prepare()
        try:
            yield native
        finally:
            native.drop()
