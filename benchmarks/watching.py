"""A process that asks one store for keys in the order they are written, and notes when it first has each.

A process, since a thread would take turns with the writer whose events it times; and by the store's own client.
``time.monotonic`` is the machine's clock, so moments of two processes compare.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

WINDOW = 64
"""Keys asked for at once, from the oldest that is not there yet."""
PAUSE_S = 0.002
Probe = Callable[[Sequence[str]], set[str]]


@dataclass(frozen=True)
class Place:
    """Where one store keeps a generation: ``url`` and the name of its collection, label or index."""

    store: str
    url: str
    name: str


class Watcher:
    """Watches for ``keys`` in a process of its own."""

    def __init__(self, place: Place, keys: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_run, args=(place, list(keys), there), daemon=True)
        self._process.start()
        self._here.recv()

    def seen(self, within_s: float) -> dict[str, float]:
        """When each key was first there, by ``time.monotonic``. Raises TimeoutError."""
        if not self._here.poll(within_s):
            self._process.terminate()
            raise TimeoutError(f"not all keys became visible within {within_s:g} s")
        seen: dict[str, float] = self._here.recv()
        self._process.join()
        return seen


def _run(place: Place, keys: list[str], there: Connection) -> None:
    probe = probing(place)
    probe(keys[:1])
    there.send("ready")
    seen: dict[str, float] = {}
    waiting = keys
    while waiting:
        asked = waiting[:WINDOW]
        found = probe(asked)
        now = time.monotonic()
        seen |= dict.fromkeys(found, now)
        waiting = [key for key in asked if key not in found] + waiting[WINDOW:]
        time.sleep(PAUSE_S)
    there.send(seen)


def probing(place: Place) -> Probe:
    """Asks the store which of some keys it has, on a connection of its own."""
    return {"chroma": _chroma, "neo4j": _neo4j, "elasticsearch": _elasticsearch}[place.store](place)


def _chroma(place: Place) -> Probe:
    import chromadb

    host, port = place.url.rsplit("/", 1)[-1].split(":")
    records = chromadb.HttpClient(host, int(port)).get_collection(place.name, embedding_function=None)
    return lambda keys: set(records.get(ids=list(keys), include=[])["ids"])


def _neo4j(place: Place) -> Probe:
    from neo4j import GraphDatabase

    session = GraphDatabase.driver(place.url).session()
    text = f"UNWIND $keys AS key MATCH (n:`{place.name}` {{_key: key}}) WHERE n._live RETURN key"
    return lambda keys: {row[0] for row in session.run(text, keys=list(keys))}


def _elasticsearch(place: Place) -> Probe:
    from elasticsearch import Elasticsearch

    client = Elasticsearch(place.url)

    def get(keys: Sequence[str]) -> set[str]:
        answer = client.mget(index=place.name, ids=list(keys), source=False)
        return {doc["_id"] for doc in answer["docs"] if doc.get("found")}

    return get
