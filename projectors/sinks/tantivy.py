"""Documents in Tantivy, the embedded full-text index.

A document is replaced by deleting its key and adding it again in one commit; a tombstone is a document that
is not ``live``. The guard reads the stored versions under the index's writer lock. ``apply`` ends with a
commit that is on disk, so it costs a few file syncs however small the batch.

Settings: ``path``, a folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, Final, Literal

import orjson
import tantivy

from outbox.errors import RecordsRefused
from projectors.marks import SLICE_BITS, SLOT_BITS, UNMARKED, Sum, mark_of, slot_of, summed
from projectors.record import Change, Document, Stored, digest, newest, storable
from projectors.sinks.tantivy_shelf import Shelf, open_shelf, schema, told_apart

KEY_BYTES_MAX: Final = 65_530
"""Tantivy leaves out longer terms silently, and a document without its key could never be replaced."""
PAGE_DOCUMENTS: Final = 1_000
SLOTS: Final = 2**SLOT_BITS
SLICE_SLOTS: Final = 2 ** (SLOT_BITS - SLICE_BITS)

_SCHEMA: Final = schema()
_LIVE: Final = tantivy.Query.term_query(_SCHEMA, "live", True)


class TantivySink:
    """A :class:`~projectors.sinks.protocol.Sink` of Document. Tantivy has no alias: ``switch`` has nothing to do."""

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, shelf: Shelf, projection: str) -> None:
        self._shelf = shelf
        self._projection = projection

    def prepare(self, generation: str) -> None:
        self._shelf.prepare(self._projection, generation)

    def switch(self, generation: str) -> None:
        pass

    def drop(self, generation: str) -> None:
        self._shelf.drop(self._projection, generation)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        refused: dict[str, str] = {}
        documents = _documents(changes, refused)
        if documents:
            self._write(generation, documents)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        """All of one snapshot, whatever is applied meanwhile."""
        searcher = self._shelf.index(self._projection, generation).searcher()
        if keys is None:
            for low, high in _parts(searcher):
                yield from _stored_between(searcher, low, high)
        else:
            for key in dict.fromkeys(keys):
                yield from _stored_of(searcher, key)

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up here, of the marks' own columns: no document is read."""
        opened = self._shelf.index(self._projection, generation)
        searcher = opened.searcher()
        if not opened.is_marked(searcher):
            return {UNMARKED: Sum(searcher.num_docs, 0)}
        return summed(pair for low, high in _parts(searcher) for pair in _marks_between(searcher, low, high))

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        """A slice is a range of slots."""
        searcher = self._shelf.index(self._projection, generation).searcher()
        for slice_ in sorted(slices):
            yield from _stored_between(searcher, slice_ * SLICE_SLOTS, (slice_ + 1) * SLICE_SLOTS)

    def _write(self, generation: str, documents: Mapping[str, tuple[int, Any]]) -> None:
        opened = self._shelf.index(self._projection, generation)
        with opened.alone():
            stored = _versions(opened.searcher(), list(documents))
            newer = {k: d for k, (beats, d) in documents.items() if k not in stored or stored[k] < beats}
            if newer:
                opened.replace(newer)


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[TantivySink]:
    """A sink for one projection; sinks and readers of one process share the open indexes."""
    with open_shelf(projection, settings) as shelf:
        yield TantivySink(shelf, projection)


def _documents(changes: Sequence[Change], refused: dict[str, str]) -> dict[str, tuple[int, Any]]:
    """What a version must be below to be replaced, and the document, by key; what cannot be to ``refused``."""
    documents = {}
    for key, change in newest(changes).items():
        try:
            documents[key] = (change.beats, _document(change))
        except (TypeError, ValueError) as error:  # UnicodeEncodeError and orjson's among them
            refused[key] = str(error)
    return documents


def _document(change: Change) -> Any:
    if len(change.key.encode()) > KEY_BYTES_MAX:
        raise ValueError(f"key of {len(change.key.encode())} bytes is longer than {KEY_BYTES_MAX}")
    written = tantivy.Document()
    written.add_text("key", change.key)
    written.add_integer("version", change.version)
    written.add_unsigned("slot", slot_of(change.key))
    written.add_boolean("live", change.record is not None)
    if change.record is None:
        return written
    if not isinstance(change.record, Document):
        raise TypeError(f"tantivy takes Document, not {type(change.record).__name__}")
    if mark := mark_of(change):
        written.add_unsigned("mark", mark.mark)
    written.add_text("title", change.record.title)
    written.add_text("text", change.record.text)
    written.add_bytes("body", orjson.dumps([change.stream, change.record.kind, dict(change.record.properties)]))
    return written


def _versions(searcher: Any, keys: Sequence[str]) -> dict[str, int]:
    found = {key: hit for key in keys if (hit := _address(searcher, key))}
    versions = searcher.fast_field_values("version", list(found.values()))
    return dict(zip(found, versions, strict=True))


def _address(searcher: Any, key: str) -> Any:
    with told_apart():
        hits = searcher.search(tantivy.Query.term_query(_SCHEMA, "key", key), limit=1, count=False).hits
    return hits[0][1] if hits else None


def _parts(searcher: Any) -> Iterator[tuple[int, int]]:
    """Ranges of slots, of a page of documents each."""
    parts = max(1, searcher.num_docs // PAGE_DOCUMENTS)
    return pairwise(SLOTS * n // parts for n in range(parts + 1))


def _stored_between(searcher: Any, low: int, high: int) -> Iterator[Stored]:
    return (_stored(searcher.doc(address)) for some in _live_between(searcher, low, high) for address in some)


def _marks_between(searcher: Any, low: int, high: int) -> Iterator[tuple[int, int | None]]:
    for some in _live_between(searcher, low, high):
        slots = searcher.fast_field_values("slot", some)
        yield from zip((slot // SLICE_SLOTS for slot in slots), searcher.fast_field_values("mark", some), strict=True)


def _live_between(searcher: Any, low: int, high: int) -> Iterator[list[Any]]:
    """Where the live documents with ``low`` <= slot < ``high`` are; too full a part is halved, to bound memory."""
    span = tantivy.Query.range_query(_SCHEMA, "slot", tantivy.FieldType.Unsigned, low, high - 1)
    query = tantivy.Query.boolean_query([(tantivy.Occur.Must, _LIVE), (tantivy.Occur.Must, span)])
    with told_apart():
        found = searcher.search(query, limit=2 * PAGE_DOCUMENTS)
    if found.count > 2 * PAGE_DOCUMENTS and high - low > 1:
        middle = (low + high) // 2
        yield from _live_between(searcher, low, middle)
        yield from _live_between(searcher, middle, high)
        return
    yield [address for _, address in found.hits]


def _stored_of(searcher: Any, key: str) -> Iterator[Stored]:
    if not storable(key):
        return
    if address := _address(searcher, key):
        document = searcher.doc(address)
        if document.get_first("live"):
            yield _stored(document)


def _stored(document: Any) -> Stored:
    record, stream = rebuilt(document)
    return Stored(record.key, stream, document.get_first("version"), digest(record))


def rebuilt(document: Any) -> tuple[Document, str]:
    """The record that a stored document was made of, and its stream."""
    stream, kind, properties = orjson.loads(document.get_first("body"))
    key, title, text = (document.get_first(name) for name in ("key", "title", "text"))
    return Document(key, kind, title, text, properties), stream
