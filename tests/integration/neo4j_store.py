"""What tests of Neo4j share: a sink in a projection of its own, and what the store holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import neo4j
import pytest

from projectors.record import Change, Node, Stored, digest
from projectors.sinks.neo4j import Neo4jSink, open_sink
from projectors.sinks.neo4j_session import cypher, label_of

G = "g1"


@pytest.fixture
def settings(address: Any) -> dict[str, Any]:
    return {"url": address("neo4j")}


@pytest.fixture
def sink(projection: str, settings: dict[str, Any]) -> Iterator[Neo4jSink]:
    with open_sink(projection, settings) as sink:
        sink.prepare(G)
        yield sink
        for generation in (G, "g2"):
            sink.drop(generation)


@pytest.fixture
def ask(projection: str, settings: dict[str, Any]) -> Iterator[Any]:
    """``ask("MATCH (n:LABEL) RETURN n.x")``: rows, as a user would read them."""
    with neo4j.GraphDatabase.driver(settings["url"], notifications_min_severity="OFF") as driver:
        yield lambda text, **p: [
            row.values() for row in driver.execute_query(cypher(text, label_of(projection, G)), p).records
        ]


def put(node: Node, version: int = 1) -> Change:
    return Change(node.key, f"n-{node.key}", version, node)


def held(sink: Neo4jSink) -> set[Stored]:
    return set(sink.scan(G))


def stored(change: Change) -> Stored:
    assert change.record is not None
    return Stored(change.key, change.stream, change.version, digest(change.record))
