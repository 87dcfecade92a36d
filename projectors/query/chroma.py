"""Questions of nearness to Chroma. Settings are those of :mod:`projectors.sinks.chroma_client`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from outbox.errors import StoreUnavailable
from projectors.query.protocol import Hit
from projectors.sinks.chroma_client import Client, Records, collection_name, open_client, translated
from projectors.sinks.chroma_codec import Floats, unit, user_metadata

STORE: Final = "chroma"
HITS_MAX: Final = 1_000
"""The most that one question gives back: each hit carries its text and metadata through memory."""
SNIPPET_LENGTH: Final = 160


@contextmanager
def open_reader(projection: str, settings: Mapping[str, Any]) -> Iterator[ChromaReader]:
    """A reader of the folder or server that ``settings`` name; it shares the folder's engine with a sink."""
    with open_client(settings) as client:
        yield ChromaReader(client, projection)


class ChromaReader:
    """A :class:`projectors.query.protocol.SemanticReader`."""

    def __init__(self, client: Client, projection: str) -> None:
        self._client = client
        self._projection = projection
        self._last: tuple[str, Records] | None = None
        """The generation that was asked last, which is the serving one, and its collection."""

    def nearest(self, generation: str, embedding: Sequence[float], limit: int) -> Sequence[Hit]:
        """Approximate (HNSW). At most :data:`HITS_MAX`; equal scores come in the order of their keys.

        Raises :class:`~outbox.errors.StoreError` if the vector has not the collection's dimensions.
        """
        if limit < 1:
            return []
        try:
            with translated():
                found = self._ask(generation, unit(np.asarray(embedding, np.float32)), min(limit, HITS_MAX))
        except StoreUnavailable:
            # Another process may have dropped the generation and made it again: ask for its collection anew.
            self._last = None
            raise
        hits = map(_hit, found["ids"][0], found["distances"][0], found["documents"][0], found["metadatas"][0])
        return sorted(hits, key=lambda hit: (-hit.score, hit.key))

    def _ask(self, generation: str, embedding: Floats, limit: int) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._collection(generation).query(
            query_embeddings=[embedding], n_results=limit, include=["distances", "documents", "metadatas"]
        )
        return answer

    def _collection(self, generation: str) -> Records:
        last = self._last
        if last is None or last[0] != generation:
            name = collection_name(self._projection, generation, "records")
            last = self._last = (generation, self._client.get_collection(name, embedding_function=None))
        return last[1]


def _hit(key: str, distance: float, document: str | None, metadata: Mapping[str, Any]) -> Hit:
    properties = user_metadata(metadata)
    of = {name: value for name, value in properties.items() if isinstance(value, str)}
    title = of.get("title", of.get("name", ""))
    return Hit(key, 1.0 - distance, STORE, of.get("kind", ""), title, (document or "")[:SNIPPET_LENGTH], properties)
