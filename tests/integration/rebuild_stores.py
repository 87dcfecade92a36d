"""The stores in which rebuilds are killed: what a user reads of them past the product, and what is left in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import chromadb
import neo4j
import psycopg
from elasticsearch import Elasticsearch
from psycopg import sql

from projectors import loading
from projectors.record import Document, Node, Record, Vector
from tests.faults import launch, points
from tests.faults.points import Point
from tests.integration.reading import Parts

Ask = Callable[[], int]
"""How many of the lasting records a user finds now."""


class Documents(Parts):
    def records(self, stream: str, state: dict[str, Any]) -> Iterator[Record]:
        for part, value in state.items():
            yield Document(f"{stream}#{part}", part, stream, json.dumps(value))


class Vectors(Parts):
    def records(self, stream: str, state: dict[str, Any]) -> Iterator[Record]:
        for part, value in state.items():
            yield Vector(f"{stream}#{part}", json.dumps(value), {"part": part}, [1.0, float(value % 7), 2.0, 3.0])


class Nodes(Parts):
    def records(self, stream: str, state: dict[str, Any]) -> Iterator[Record]:
        for part, value in state.items():
            yield Node(f"{stream}#{part}", "Part", part, {"value": value})


@contextmanager
def rows(dsn: str, projector: str) -> Iterator[Ask]:
    query = sql.SQL("SELECT count(*) FROM {} WHERE key LIKE 'thing-lasting%%#a'")
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = query.format(sql.Identifier("outbox_rows", projector))
        yield lambda: connection.execute(statement, []).fetchone()[0]


@contextmanager
def documents(url: str, projector: str) -> Iterator[Ask]:
    lasting = {"bool": {"filter": [{"prefix": {"key": "thing-lasting"}}, {"term": {"kind": "a"}}]}}
    with Elasticsearch(url) as client:
        yield lambda: client.count(index=projector, query=lasting)["count"]


@contextmanager
def nodes(url: str, projector: str) -> Iterator[Ask]:
    serving = "MATCH (g:OutboxGeneration {projection: $p, serving: true}) RETURN g.label AS label"
    query = "MATCH (n:$(%s)) WHERE n.name = 'a' AND n._live AND n._key STARTS WITH 'thing-lasting' RETURN count(*) AS n"
    with neo4j.GraphDatabase.driver(url) as driver:

        def ask() -> int:
            with driver.session() as session, session.begin_transaction() as tx:
                label = tx.run(serving, p=projector).single(strict=True)["label"]
                return tx.run(query.replace("%s", "$label"), label=label).single(strict=True)["n"]

        yield ask


def tables(dsn: str, projector: str) -> set[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'outbox_rows' AND tablename LIKE %s"
    with psycopg.connect(dsn) as connection:
        return {name.partition(":")[2] for (name,) in connection.execute(query, [f"{projector}:%"])}


def indexes(url: str, projector: str) -> set[str]:
    with Elasticsearch(url) as client:
        return {name.rpartition("-")[2] for name in client.indices.get(index=f"{projector}-*")}


def labels(url: str, projector: str) -> set[str]:
    """Those of nodes, of constraints and indexes, and of marks."""
    own = f"p_{projector}."
    with neo4j.GraphDatabase.driver(url) as driver:
        found = [r["l"] for r in driver.execute_query("MATCH (n) UNWIND labels(n) AS l RETURN DISTINCT l").records]
        for kind in ("INDEXES", "CONSTRAINTS"):
            shown = driver.execute_query(f"SHOW {kind} YIELD labelsOrTypes").records
            found += [name for record in shown for name in record["labelsOrTypes"] or []]
        found += [r["l"] for r in driver.execute_query("MATCH (g:OutboxGeneration) RETURN g.label AS l").records]
    return {name.removeprefix(own) for name in found if name.startswith(own)}


def collections(url: str, projector: str) -> set[str]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    client = chromadb.HttpClient(host=host, port=int(port), settings=chromadb.Settings(anonymized_telemetry=False))
    names = [c.name.split(".") for c in client.list_collections(limit=100_000)]
    return {generation for own, generation, _ in (n for n in names if len(n) == 3) if own == projector}


@dataclass(frozen=True)
class Place:
    """One store. ``asks`` is what a user reads past the product, if the store has an alias or a mark of its own."""

    store: str
    server: str
    setting: str
    projection: type[Parts]
    left: Callable[[str, str], set[str]]
    asks: Callable[[str, str], Any] | None
    sink: str
    """Module and class, for points in it."""


PLACES = {
    "postgres": Place("postgres", "postgres", "dsn", Parts, tables, rows, "projectors.sinks.postgres:PostgresSink"),
    "elasticsearch": Place(
        "elasticsearch", "elasticsearch", "url", Documents, indexes, documents,
        "projectors.sinks.elasticsearch:ElasticsearchSink",
    ),
    "neo4j": Place("neo4j", "neo4j", "url", Nodes, labels, nodes, "projectors.sinks.neo4j:Neo4jSink"),
    "chroma": Place("chroma", "chroma", "url", Vectors, collections, None, "projectors.sinks.chroma:ChromaSink"),
}  # fmt: skip


def step(place: Place, name: str) -> Point:
    """A named function of the build."""
    module, _, owner = place.sink.partition(":")
    known = {
        "begin": Point("projectors.ledger", "begin_generation"),
        "prepare": Point(module, f"{owner}.prepare"),
        "apply": Point(module, f"{owner}.apply"),
        "note": Point("projectors.ledger", "note_progress"),
        "catch up": Point("projectors.catching_up", "CatchingUp.wait"),
        "session": Point("projectors.session", "Session.step"),
        "checkpoint": Point("projectors.ledger", "save_checkpoints"),
        "verify": Point("projectors.operations", "_compared"),
        "alias": Point(module, f"{owner}.switch"),
        "row": Point("projectors.ledger", "switch_generation"),
        "drop": Point("projectors.rebuild", "_drop_old"),
        "forget": Point("projectors.ledger", "forget_generation"),
        "discard": Point("projectors.rebuild", "_discard"),
    }
    return known[name]


def command(place: str, arguments: Sequence[str], settings: dict[str, str], log: str) -> None:
    """Run ``outbox ARGUMENTS`` in this process, with loads of several batches and the points above."""
    loading.LOAD_BATCH = 50
    order = settings.get(points.ORDER)
    if order:
        name = order.split(":")[0]
        points.POINTS = {name: step(PLACES[place], name)}
    launch.command(arguments, settings, log)
