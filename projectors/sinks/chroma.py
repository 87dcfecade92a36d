"""Chroma, embedded or on a server: one collection of vectors per projection and generation.

Chroma cannot compare and set, so the guard is read, decide, write; it holds as long as one process at a time
writes a key, which the projector's consumer group sees to. All that the guard needs lives in Chroma: a record's
version in its metadata, a tombstone's in a companion collection under the record's key.

Settings: see :mod:`projectors.sinks.chroma_client`; and ``dimensions`` (optional): refuse other vectors, rather
than let the first record of a collection decide.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from chromadb.errors import NotFoundError

from outbox.errors import RecordsRefused, StoreUnavailable
from projectors.marks import Sum, slice_of, summed
from projectors.record import Change, Stored, digest, newest
from projectors.sinks.chroma_client import (
    Client,
    Part,
    Records,
    collection_name,
    is_refusal,
    open_client,
    parse,
    translated,
)
from projectors.sinks.chroma_codec import GUARD, ChromaRow, changed, decode, encode, guard_in, guard_text

REQUEST_BYTES: Final = 16 * 1024 * 1024
"""A server refuses requests above 40 MiB by default; our sizes are estimates, and proxies are often stricter."""

ADD_ROWS: Final = 2_000
CHANGE_ROWS: Final = 200
"""Rows in a request, so that a busy server answers well within its timeout: on one core it was seen to add 700
vectors of 384 dimensions a second, and to change 60, because a changed one is placed in the index anew."""

SCAN_PAGE: Final = 1_000
"""Records read at once: 1,536 dimensions make about 30 MB of them in Python."""

SEARCHED: Final = 400
"""How many neighbours a question looks at (HNSW's ef). Of 20,000 records of Python code, asked for by four of their
words, Chroma's own 100 missed the nearest one of all in 6 of 100 questions, 400 in 1; CPU 3.5 ms instead of 1.6."""

UNSAVED: Final = 200
"""Records after which Chroma saves its index. Those after the last save stay in its queue, which each write reads: with
its own 1,000, the thousandth single write takes twice as long as the first."""

SPACES: Final[Mapping[Part, Any]] = {
    "tombstones": {"hnsw": {"space": "l2"}},
    "records": {"hnsw": {"space": "ip", "ef_search": SEARCHED, "sync_threshold": UNSAVED}},
}
"""A generation's collections. Of vectors of length one the inner product is the cosine; why not Chroma's own
``cosine`` see :mod:`projectors.sinks.chroma_codec`."""

Metadata = Mapping[str, Any]
T = TypeVar("T")


@dataclass(slots=True)
class _Generation:
    """The two collections of a generation."""

    records: Records
    tombstones: Records
    marked: bool = False
    """A tombstone has been seen. Only this is remembered, never their absence: another process may write one."""

    def has_tombstones(self) -> bool:
        self.marked = self.marked or self.tombstones.count() > 0
        return self.marked


@dataclass(slots=True)
class _Plan:
    """What one page of changes comes to, given what is stored."""

    marks: list[Change]
    deletes: list[str]
    adds: list[ChromaRow]
    updates: list[ChromaRow]
    """Text or vector are other ones than those stored."""
    alike: list[ChromaRow]
    """They may be the same ones, by their hash."""


class ChromaSink:
    """See :class:`projectors.sinks.protocol.Sink`; takes :class:`~projectors.record.Vector` with an embedding."""

    def __init__(self, client: Client, projection: str, dimensions: int | None = None) -> None:
        self._client = client
        self._projection = projection
        self._dimensions = dimensions
        self._generations: dict[str, _Generation] = {}
        with translated():
            self._page: int = client.get_max_batch_size()

    def prepare(self, generation: str) -> None:
        with translated():
            for part, space in SPACES.items():
                name = collection_name(self._projection, generation, part)
                self._client.get_or_create_collection(name, configuration=space, embedding_function=None)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        winners = list(newest(changes).values())
        refused: dict[str, str] = {}
        with self._translated(generation):
            held = self._held(generation)
            for page in _cut(winners, self._page):
                self._apply(held, page, refused)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        for found in self._found(generation, ["embeddings", "documents", "metadatas"], keys):
            yield from map(_stored, found["ids"], found["embeddings"], found["documents"], found["metadatas"])

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up here, of metadata alone: Chroma cannot add, but neither texts nor vectors are read."""
        pages = self._found(generation, ["metadatas"])
        rows = (row for found in pages for row in zip(found["ids"], found["metadatas"], strict=True))
        return summed((slice_of(id_), guard_in(metadata).mark) for id_, metadata in rows)

    def scan_slices(self, generation: str, slices: Container[int]) -> Iterator[Stored]:
        """By their ids: 100 bytes each of what is then read page by page."""
        ids = (id_ for found in self._found(generation, []) for id_ in found["ids"])
        return self.scan(generation, [id_ for id_ in ids if slice_of(id_) in slices])

    def switch(self, generation: str) -> None:
        """Chroma has no aliases; the product's own table decides which generation serves."""

    def drop(self, generation: str) -> None:
        self._generations.pop(generation, None)
        with translated():
            for part in SPACES:
                with suppress(NotFoundError):
                    self._client.delete_collection(collection_name(self._projection, generation, part))

    def _found(
        self, generation: str, include: list[str], keys: Sequence[str] | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """What is there, or of these keys; page by page."""
        with self._translated(generation):
            records = self._held(generation).records
        for page in self._pages(keys):
            with self._translated(generation):
                found = records.get(**page, include=include)
            yield found
            if keys is None and not found["ids"]:
                return

    def _apply(self, held: _Generation, page: Sequence[Change], refused: dict[str, str]) -> None:
        """Bring one page of changes, each key once, into the store.

        1. Read the stored versions. A crash from here on leaves a part applied; each step is its own guard.
        2. Mark the tombstones. Marked but not deleted: the same tombstone again deletes, for step 3 asks only
           whether the record is older than the tombstone.
        3. Delete what they remove.
        4. Add new records.
        5. Update those that are there: Chroma merges metadata, so what stays is not sent, and names that went are set
           to None. Changing a vector in the index costs some 25 times what changing metadata does, so the same one is
           not sent again; where the hash does not rule it out, it is read and compared.
        """
        plan = self._plan(held, page, refused)
        if plan.marks:
            held.marked = True
            _mark(held.tombstones, plan.marks)
        if plan.deletes:
            held.records.delete(ids=plan.deletes)
        _write(held.records.add, plan.adds, ADD_ROWS, refused)
        same, other = _by_content(held.records, plan.alike)
        _write(held.records.update, [*plan.updates, *other], CHANGE_ROWS, refused)
        _write(partial(_update_metadata, held.records), same, ADD_ROWS, refused)

    def _plan(self, held: _Generation, page: Sequence[Change], refused: dict[str, str]) -> _Plan:
        keys = [change.key for change in page if change.key]
        stored = _metadata(held.records, keys)
        marks = _metadata(held.tombstones, keys) if held.has_tombstones() else {}
        plan = _Plan([], [], [], [], [])
        for change in page:
            old = stored.get(change.key)
            wins = change.beats > max(guard_in(old).version, guard_in(marks.get(change.key)).version)
            if change.record is None:
                _plan_tombstone(plan, change, old, wins=wins)
            elif wins:
                self._plan_record(plan, change, old, refused)
        return plan

    def _plan_record(self, plan: _Plan, change: Change, old: Metadata | None, refused: dict[str, str]) -> None:
        try:
            row = self._row(change)
        except (ValueError, TypeError) as error:
            refused[change.key] = str(error)
            return
        if old is None:
            plan.adds.append(row)
        else:
            row = replace(row, metadata=changed(old, row.metadata))
            (plan.alike if guard_in(old).content in (0, row.content) else plan.updates).append(row)

    def _row(self, change: Change) -> ChromaRow:
        row = encode(change)
        if self._dimensions is not None and len(row.embedding) != self._dimensions:
            raise ValueError(f"the embedding has {len(row.embedding)} dimensions, not {self._dimensions}")
        return row

    def _held(self, generation: str) -> _Generation:
        if generation not in self._generations:
            self._generations[generation] = _Generation(
                self._collection(generation, "records"), self._collection(generation, "tombstones")
            )
        return self._generations[generation]

    def _collection(self, generation: str, part: Part) -> Records:
        name = collection_name(self._projection, generation, part)
        return self._client.get_collection(name, embedding_function=None)

    @contextmanager
    def _translated(self, generation: str) -> Iterator[None]:
        """Another process may have dropped the generation and made it again: ask for its collections anew."""
        try:
            with translated():
                yield
        except StoreUnavailable:
            self._generations.pop(generation, None)
            raise

    def _pages(self, keys: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        if keys is not None:
            yield from ({"ids": ids} for ids in _cut([key for key in dict.fromkeys(keys) if key], SCAN_PAGE))
            return
        offset = 0
        while True:
            yield {"limit": SCAN_PAGE, "offset": offset}
            offset += SCAN_PAGE


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[ChromaSink]:
    """A sink on the folder or server that ``settings`` name."""
    with open_client(settings) as client:
        yield ChromaSink(client, projection, parse(settings).dimensions)


def _plan_tombstone(plan: _Plan, change: Change, old: Metadata | None, *, wins: bool) -> None:
    # Chroma takes no empty id, so there is nothing under it to mark: no late write could bring it back.
    if wins and change.key:
        plan.marks.append(change)
    if old is not None and change.beats > guard_in(old).version:
        plan.deletes.append(change.key)


def _metadata(collection: Records, keys: Sequence[str]) -> dict[str, Metadata]:
    if not keys:
        return {}
    found = collection.get(ids=list(keys), include=["metadatas"])
    return dict(zip(found["ids"], found["metadatas"], strict=True))


def _stored(key: str, embedding: Sequence[float], document: str | None, metadata: Metadata | None) -> Stored:
    guard = guard_in(metadata)
    return Stored(key, guard.stream, guard.version, digest(decode(key, embedding, document, metadata or {})))


def _mark(tombstones: Records, marks: Sequence[Change]) -> None:
    tombstones.upsert(
        ids=[change.key for change in marks],
        # A collection wants vectors; equal ones would make its index degenerate.
        embeddings=[[zlib.crc32(change.key.encode()) / 2**32] for change in marks],
        metadatas=[{GUARD: guard_text(change.version, change.stream)} for change in marks],
    )


def _by_content(records: Records, rows: Sequence[ChromaRow]) -> tuple[list[ChromaRow], list[ChromaRow]]:
    """The rows whose text and vector the store holds already, and the others."""
    same: list[ChromaRow] = []
    other: list[ChromaRow] = []
    for part in _cut(rows, SCAN_PAGE):
        found = records.get(ids=[row.id for row in part], include=["embeddings", "documents"])
        held = dict(zip(found["ids"], zip(found["embeddings"], found["documents"], strict=True), strict=True))
        for row in part:
            embedding, document = held.get(row.id, ((), None))
            unchanged = document == row.document and row.holds(embedding)
            (same if unchanged else other).append(row)
    return same, other


def _update_metadata(records: Records, *, ids: Sequence[str], metadatas: Sequence[Metadata], **_same: Any) -> None:
    records.update(ids=list(ids), metadatas=list(metadatas))


def _write(operation: Callable[..., Any], rows: Sequence[ChromaRow], rows_max: int, refused: dict[str, str]) -> None:
    """Write rows in requests of bounded size; halve a refused request until the refused records stand alone."""
    for part in _bounded(rows, rows_max):
        try:
            operation(
                ids=[row.id for row in part],
                embeddings=[row.embedding for row in part],
                documents=[row.document for row in part],
                metadatas=[row.metadata for row in part],
            )
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(part) == 1:
                refused[part[0].id] = str(error)
            else:
                _write(operation, part, (len(part) + 1) // 2, refused)


def _bounded(rows: Sequence[ChromaRow], rows_max: int) -> Iterator[list[ChromaRow]]:
    part: list[ChromaRow] = []
    size = 0
    for row in rows:
        if part and (len(part) == rows_max or size + row.size > REQUEST_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += row.size
    if part:
        yield part


def _cut(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    return (items[start : start + length] for start in range(0, len(items), length))
