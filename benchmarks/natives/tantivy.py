"""Tantivy's writer, a commit after each batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import tantivy

from benchmarks.natives import Native, parts
from projectors.record import Document
from projectors.sinks.tantivy_shelf import WRITER_BYTES


class TantivyNative:
    def __init__(self, index: Any) -> None:
        self._index = index
        self._writer = index.writer(heap_size=WRITER_BYTES, num_threads=1)

    def load(self, records: Sequence[Document], batch: int) -> None:
        for part in parts(records, batch):
            for record in part:
                self._writer.add_document(_document(record))
            self._writer.commit()

    def update(self, records: Sequence[Document], batch: int) -> None:
        for part in parts(records, batch):
            for record in part:
                self._writer.delete_documents_by_term("key", record.key)
                self._writer.add_document(_document(record))
            self._writer.commit()

    def count(self) -> int:
        self._index.reload()
        return int(self._index.searcher().num_docs)

    def close(self) -> None:
        self._writer.wait_merging_threads()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", stored=True)
    builder.add_text_field("text", stored=True)
    builder.add_bytes_field("body", stored=True)
    return builder.build()


def _document(record: Document) -> Any:
    document = tantivy.Document()
    document.add_text("key", record.key)
    document.add_text("title", record.title)
    document.add_text("text", record.text)
    document.add_bytes("body", orjson.dumps([record.kind, dict(record.properties)]))
    return document


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    folder = Path(settings["path"]) / name
    folder.mkdir(parents=True)
    native = TantivyNative(tantivy.Index(_schema(), path=str(folder)))
    try:
        yield native
    finally:
        native.close()
