"""The five servers, by name, and the environment variable that carries the address of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from deploy.local.chroma import Chroma
from deploy.local.elasticsearch import Elasticsearch
from deploy.local.errors import UnknownService
from deploy.local.kafka import Kafka
from deploy.local.neo4j import Neo4j
from deploy.local.postgres import Postgres
from deploy.local.server import Server

SERVERS: Final[dict[str, Server]] = {
    server.name: server for server in (Postgres(), Kafka(), Neo4j(), Elasticsearch(), Chroma())
}
NAMES: Final[tuple[str, ...]] = tuple(SERVERS)


def variable(name: str) -> str:
    """Return the environment variable in which tests look for this server's address."""
    return f"OUTBOX_TEST_{name.upper()}"


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without repeats, in their order. Raises UnknownService."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in SERVERS:
            raise UnknownService(name, NAMES)
    return chosen
