"""Chroma's ``add`` and ``update``, with the index settings that the sink uses; embedded, in this very process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import chromadb

from benchmarks.natives import Native, parts
from projectors.record import Vector
from projectors.sinks.chroma import SPACES
from projectors.sinks.chroma_client import open_client, quiet


class ChromaNative:
    def __init__(self, collection: Any, batch_max: int) -> None:
        self._collection = collection
        self._batch_max = batch_max

    def load(self, records: Sequence[Vector], batch: int) -> None:
        self._send(self._collection.add, records, batch)

    def update(self, records: Sequence[Vector], batch: int) -> None:
        self._send(self._collection.update, records, batch)

    def count(self) -> int:
        return int(self._collection.count())

    def _send(self, write: Callable[..., Any], records: Sequence[Vector], batch: int) -> None:
        for part in parts(records, min(batch, self._batch_max)):
            write(
                ids=[record.key for record in part],
                embeddings=[record.embedding for record in part],
                documents=[record.text for record in part],
                metadatas=[dict(record.metadata) for record in part],
            )


def _client(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
    if "path" in settings:
        return closing(chromadb.PersistentClient(str(settings["path"]), settings=quiet()))
    return open_client(settings)


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    with _client(settings) as client:
        collection = client.create_collection(name, configuration=SPACES["records"], embedding_function=None)
        try:
            yield ChromaNative(collection, client.get_max_batch_size())
        finally:
            client.delete_collection(name)
