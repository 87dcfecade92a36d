"""What a store holds, read by its own client: key → (version, content). Nothing of the product's is used to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import chromadb
import psycopg
from chromadb.api import ClientAPI
from elasticsearch import Elasticsearch
from neo4j import GraphDatabase
from psycopg import sql


@dataclass(frozen=True)
class Held:
    """One live record of a store."""

    version: int
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where one projector's records are. ``serving``: the generation that PostgreSQL says serves."""

    projector: str
    address: str
    serving: str


Read = Callable[[Place], dict[str, Held]]


def rows(place: Place) -> dict[str, Held]:
    """Through the view that a user reads."""
    statement = sql.SQL("SELECT key, version, body FROM {}").format(sql.Identifier("outbox_rows", place.projector))
    with psycopg.connect(place.address, autocommit=True, connect_timeout=5) as connection:
        return {key: Held(version, body) for key, version, body in connection.execute(statement)}


def documents(place: Place) -> dict[str, Held]:
    """Through the alias that a user searches."""
    with Elasticsearch(place.address, request_timeout=10, max_retries=0) as client:
        client.indices.refresh(index=place.projector)
        hits = client.search(index=place.projector, size=10_000, query={"match_all": {}})["hits"]["hits"]
    return {hit["_source"]["key"]: _document(hit["_source"]) for hit in hits}


def vectors(place: Place) -> dict[str, Held]:
    """The serving generation's collection."""
    collection = _chroma(place.address).get_collection(
        f"{place.projector}.{place.serving}.records", embedding_function=None
    )
    found = collection.get(include=["metadatas", "documents"])
    pairs = zip(found["ids"], found["metadatas"], found["documents"], strict=True)
    return {key: _vector(metadata, text) for key, metadata, text in pairs}


@cache
def _chroma(address: str) -> ClientAPI:
    """One for all looks: making one takes longer than looking."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return chromadb.HttpClient(host=host, port=int(port), settings=chromadb.Settings(anonymized_telemetry=False))


def nodes(place: Place) -> dict[str, Held]:
    """The live nodes of the serving generation, and where their edges lead."""
    query = (
        f"MATCH (n:`p_{place.projector}.{place.serving}`) WHERE n._live OPTIONAL MATCH (n)-[:has]->(m)"
        " RETURN properties(n) AS own, collect(m._key) AS edges"
    )
    with GraphDatabase.driver(place.address, connection_timeout=5, notifications_min_severity="OFF") as driver:
        found, _, _ = driver.execute_query(query)
    return {row["own"]["_key"]: _node(row["own"], row["edges"]) for row in found}


def _node(own: Mapping[str, Any], edges: Sequence[str]) -> Held:
    content = {name: value for name, value in own.items() if not name.startswith("_") and name != "name"}
    is_stream = "#" not in own["_key"]
    return Held(own["_version"], {**content, "edges": sorted(edges)} if is_stream or edges else content)


def _document(source: Mapping[str, Any]) -> Held:
    return Held(source["version"], _told(source["properties"], source["text"]))


def _vector(metadata: Mapping[str, Any], text: str) -> Held:
    own = {name: value for name, value in metadata.items() if not name.startswith("_")}
    return Held(int(metadata["_g"].split()[0]), _told(own, text))


def _told(content: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The content, if the text beside it says the same; else with the text, which no model has."""
    said = " ".join(f"{name} {value}" for name, value in sorted(content.items()))
    return dict(content) if said == text else {**content, "text": text}


READ: Mapping[str, Read] = {"rows": rows, "documents": documents, "vectors": vectors, "nodes": nodes}
STORES: Mapping[str, str] = {"rows": "postgres", "documents": "elasticsearch", "vectors": "chroma", "nodes": "neo4j"}
"""The sink that keeps each kind."""
FORMS: Mapping[str, str] = {"rows": "Rows", "documents": "Documents", "vectors": "Vectors", "nodes": "Nodes"}
