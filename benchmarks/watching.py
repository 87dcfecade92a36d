"""A process that asks one store for keys as soon as they are committed, and notes when it first has each.

While nothing is outstanding it does not ask: questions without end would be the greater part of the store's work.

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
from typing import Self

WINDOW = 64
"""Keys asked for at once, from the oldest that is not there yet."""
Probe = Callable[[Sequence[str]], set[str]]


@dataclass(frozen=True)
class Place:
    """Where one store keeps a generation: ``url`` and the name of its collection, label or index."""

    store: str
    url: str
    name: str


class Watcher:
    """Watches one store in a process of its own, round by round; ``pause_s``: between two questions."""

    def __init__(self, place: Place, pause_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_run, args=(place, there, pause_s), daemon=True)
        self._process.start()
        there.close()
        self._here.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._process.terminate()
        self._process.join()

    def committed(self, key: str) -> None:
        """This key is to be seen from now on."""
        self._here.send(key)

    def seen(self, within_s: float) -> dict[str, float]:
        """When each key of this round was first there, by ``time.monotonic``. Raises TimeoutError."""
        self._here.send(None)
        if not self._here.poll(within_s):
            raise TimeoutError(f"not all keys became visible within {within_s:g} s")
        seen: dict[str, float] = self._here.recv()
        return seen


def _run(place: Place, there: Connection, pause_s: float) -> None:
    probe = probing(place)
    probe(["no such key"])
    there.send("ready")
    while True:
        there.send(_round(probe, there, pause_s))


def _round(probe: Probe, there: Connection, pause_s: float) -> dict[str, float]:
    """Ask for what comes in, until None has come and all is there."""
    seen: dict[str, float] = {}
    waiting: list[str] = []
    more = True
    while more or waiting:
        while more and there.poll(0 if waiting else None):
            key = there.recv()
            more = key is not None
            waiting += [key] if more else []
        if not waiting:
            continue
        found = probe(waiting[:WINDOW])
        seen |= dict.fromkeys(found, time.monotonic())
        waiting = [key for key in waiting if key not in found]
        time.sleep(pause_s)
    return seen


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
