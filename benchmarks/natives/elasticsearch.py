"""Elasticsearch's ``helpers.streaming_bulk``, into an index with the sink's fields and its JSON library."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from elasticsearch import Elasticsearch
from elasticsearch.helpers import streaming_bulk
from elasticsearch.serializer import OrjsonSerializer

from benchmarks.natives import Native
from projectors.record import Document
from projectors.sinks.elasticsearch_form import MAPPINGS

FIELDS: Final = ("key", "kind", "title", "text", "properties")


class ElasticsearchNative:
    def __init__(self, client: Elasticsearch, index: str) -> None:
        self._client = client
        self._index = index

    def load(self, records: Sequence[Document], batch: int) -> None:
        actions = ({"_index": self._index, "_id": r.key, "_source": _source(r)} for r in records)
        deque(streaming_bulk(self._client, actions, chunk_size=batch), maxlen=0)

    def update(self, records: Sequence[Document], batch: int) -> None:
        self.load(records, batch)

    def count(self) -> int:
        self._client.indices.refresh(index=self._index)
        return int(self._client.count(index=self._index)["count"])


def _source(record: Document) -> dict[str, Any]:
    return {field: getattr(record, field) for field in FIELDS}


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    mappings = {"dynamic": "strict", "properties": {field: MAPPINGS["properties"][field] for field in FIELDS}}
    shape = {"number_of_shards": 1, "number_of_replicas": 0}
    serializers = {"application/vnd.elasticsearch+json": OrjsonSerializer()}
    with Elasticsearch(settings["url"], serializers=serializers, request_timeout=60) as client:
        client.indices.create(index=name, settings=shape, mappings=mappings)
        try:
            yield ElasticsearchNative(client, name)
        finally:
            client.indices.delete(index=name)
