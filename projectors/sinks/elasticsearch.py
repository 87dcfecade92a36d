"""Documents in Elasticsearch: one index per generation, guarded by external versions.

The guard is Elasticsearch's own: every document is indexed with ``version_type=external`` and its stream's
version, so an older or equal write is answered 409: it was overtaken or applied before. Whoever edits a
document without a version makes Elasticsearch count it up by itself, so a 409 is believed only if the
version within the document says the same; if not, the change is written on condition that the document is
still the one looked at. Elasticsearch forgets the version of a deleted document after ``index.gc_deletes``
(60 s), so a tombstone is no delete but a small document ``{"deleted": true, "version": …}`` under the same
guard; readers, scans and the alias filter it out.

An index takes bulk writes only through an alias of its own (``<index>-write``, with ``require_alias``): a late
write to a dropped generation is answered 404 instead of making a new index with a guessed mapping.

Settings: ``url``; optional ``username`` and ``password``, or ``api_key``; ``shards`` (1), ``replicas`` (0, one
node), ``refresh`` (false; true or "wait_for" make ``apply`` return once a search sees its changes) and
``timeout_s`` (30). Works with Elasticsearch 9; needs no script, reindex or by-query support.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final, Literal

from elasticsearch import BadRequestError, Elasticsearch, NotFoundError

from outbox.errors import RecordsRefused, StoreError, StoreUnavailable
from projectors.marks import SLICES, UNMARKED, Sum
from projectors.record import Change, Stored, newest
from projectors.sinks.elasticsearch_client import RETRY_AFTER_S, ElasticsearchSettings, connect, parse, translated
from projectors.sinks.elasticsearch_form import (
    LIVE,
    MAPPINGS,
    MARKS,
    Item,
    document_id,
    item_of,
    stored_of,
    stored_version,
)

BULK_BYTES_MAX: Final = 10 * 1024 * 1024
"""Elasticsearch's own advice is 5-15 MB a bulk request; it refuses bodies above 100 MB."""
BULK_COUNT_MAX: Final = 5_000
"""More than a projector gives at once: between two requests its thread waits for the one that folds."""
PAGE_COUNT_MAX: Final = 1_000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""A scan's pages are sized to about this much text each."""
SUMS: Final[Mapping[str, Any]] = {
    # As many buckets as there are slices: with fewer, shards would send only their greatest, and sums be wrong.
    "slices": {"terms": {"field": "slice", "size": SLICES}, "aggregations": {"total": {"sum": {"field": "mark"}}}},
    "bare": {"missing": {"field": "slice"}},
}
CLOSED: Final = "index_closed_exception"
"""Answered 400, as what is wrong with a document is; but the index will be opened again."""
PIT_KEEP_ALIVE: Final = "5m"
"""Per page: a consumer slower than this loses its scan and starts again."""

_Found = tuple[Collection[str], Collection[str]]


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[ElasticsearchSink]:
    """The sink of one projection. Opens no connection yet; raises :class:`SettingsError`."""
    parsed = parse(settings)
    with connect(parsed) as client:
        yield ElasticsearchSink(client, projection, parsed)


def alias_name(projection: str) -> str:
    """The projection's name as Elasticsearch allows names: lower case, ``[a-z0-9_.-]``, not too long.

    A name that had to be changed gets a part of its hash, so that two projections never share an index.
    """
    clean = re.sub(r"[^a-z0-9_.-]", "-", projection.lower()).lstrip("-_.+")[:100]
    if clean == projection:
        return clean
    return f"{clean or 'x'}-{hashlib.blake2b(projection.encode(), digest_size=4).hexdigest()}"


def index_name(projection: str, generation: str) -> str:
    """The index of one generation."""
    return f"{alias_name(projection)}-{generation}"


class ElasticsearchSink:
    """Keeps one projection's documents; see the module's text and :class:`projectors.sinks.protocol.Sink`."""

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, client: Elasticsearch, projection: str, settings: ElasticsearchSettings) -> None:
        self._client = client
        self._projection = projection
        self._settings = settings

    def prepare(self, generation: str) -> None:
        """Create the generation's index with its mapping and write alias, if it is not there."""
        index = self._index(generation)
        found = self._look(index)
        if found is None:
            found = self._create(index)
        fields, aliases = found
        if f"{index}-write" not in aliases:  # an index that was restored without its aliases
            with translated(f"extend index {index}"):
                self._client.indices.put_alias(index=index, name=f"{index}-write")
        if MARKS.keys() - fields:
            with translated(f"extend index {index}"):
                self._client.indices.put_mapping(index=index, properties=MARKS)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        """Index the changes in bulk requests of bounded size; overtaken ones are answered 409 and left alone."""
        refused: dict[str, str] = {}
        target = f"{self._index(generation)}-write"
        for batch in _batches(changes, refused):
            self._send(target, batch, refused)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        """Live documents rebuilt from ``_source``; a full scan refreshes first and reads one point in time."""
        index = self._index(generation)
        sources = self._sources(index) if keys is None else self._sources_of(index, keys)
        return (stored_of(source) for source in sources if not source.get("deleted"))

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up by Elasticsearch in one answer; it adds doubles, see :data:`projectors.marks.MARK_BITS`."""
        index = self._index(generation)
        with translated(f"sum {index}"):
            self._client.indices.refresh(index=index)
            answer = self._client.search(
                index=index, query=LIVE, size=0, aggregations=SUMS, allow_partial_search_results=False
            )
        found = answer["aggregations"]
        sums = {b["key"]: Sum(b["doc_count"], int(b["total"]["value"])) for b in found["slices"]["buckets"]}
        bare: int = found["bare"]["doc_count"]
        return sums | ({UNMARKED: Sum(bare, 0)} if bare else {})

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        wanted = {"bool": {**LIVE["bool"], "filter": {"terms": {"slice": sorted(slices)}}}}
        return (stored_of(source) for source in self._sources(self._index(generation), wanted))

    def switch(self, generation: str) -> None:
        """Move the alias named like the projection, in one step; it shows no tombstones."""
        alias, index = alias_name(self._projection), self._index(generation)
        with translated(f"switch alias {alias}"):
            # What was written in the last second is not found yet: searches would find a hole behind the alias.
            self._client.indices.refresh(index=index)
            # must_exist: without it a removal that no longer fits is answered 200, with the failure in the body.
            leaving = [
                {"remove": {"index": old, "alias": alias, "must_exist": True}}
                for old in self._holders(alias)
                if old != index
            ]
            entering = {"add": {"index": index, "alias": alias, "filter": LIVE}}
            self._client.indices.update_aliases(actions=[*leaving, entering])

    def drop(self, generation: str) -> None:
        """Delete the generation's index, and with it its aliases."""
        with translated(f"delete index {self._index(generation)}"):
            self._client.indices.delete(index=self._index(generation), ignore_unavailable=True)

    def _index(self, generation: str) -> str:
        return index_name(self._projection, generation)

    def _look(self, index: str) -> _Found | None:
        """The names of the index's fields and aliases; None if there is no index. Asked first: to be told by a refused
        creation takes Elasticsearch 90 ms, since each change of its indices waits for those before it."""
        with translated(f"look for index {index}"):
            found = self._client.indices.get(
                index=index, features="aliases,mappings", ignore_unavailable=True, allow_no_indices=True
            )
        if index not in found:
            return None
        return frozenset(found[index]["mappings"].get("properties", ())), frozenset(found[index]["aliases"])

    def _create(self, index: str) -> _Found:
        """Create it, unless somebody has just done so."""
        shape = {"number_of_shards": self._settings.shards, "number_of_replicas": self._settings.replicas}
        aliases = frozenset({f"{index}-write"})
        try:
            with translated(f"create index {index}"):
                self._client.indices.create(
                    index=index, settings=shape, mappings=MAPPINGS, aliases={alias: {} for alias in aliases}
                )
        except StoreError as error:
            if not _is(error, "resource_already_exists_exception"):
                raise
            return self._look(index) or (frozenset(), aliases)
        return frozenset(MAPPINGS["properties"]), aliases

    def _holders(self, alias: str) -> list[str]:
        try:
            return list(self._client.indices.get_alias(name=alias))
        except NotFoundError:
            return []

    def _send(self, target: str, batch: Sequence[Item], refused: dict[str, str]) -> None:
        """One bulk request. One that is refused whole is halved until the culprit stands alone."""
        try:
            answer = self._bulk(target, batch)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(batch) == 1:
                refused[batch[0].key] = str(error)
                return
            middle = len(batch) // 2
            self._send(target, batch[:middle], refused)
            self._send(target, batch[middle:], refused)
            return
        overtaken = [i for i, r in zip(batch, answer, strict=True) if not _judge(i, next(iter(r.values())), refused)]
        if overtaken and (behind := self._behind(target, overtaken)):
            # What another writer has just changed is answered 409 once more, and looked at once more: its
            # version has risen, so this ends.
            self._send(target, behind, refused)

    def _behind(self, target: str, overtaken: Sequence[Item]) -> list[Item]:
        """Those whose document is older than Elasticsearch's own count says, to be written under another guard."""
        found = self._found(target, [item.id for item in overtaken], ["version"])
        return [i.unless_changed(doc) for i, doc in zip(overtaken, found, strict=True) if i.beats > stored_version(doc)]

    def _bulk(self, target: str, batch: Sequence[Item]) -> Sequence[Mapping[str, Any]]:
        with translated("bulk"):
            answer = self._client.bulk(
                index=target,
                operations=[line for item in batch for line in (item.action, item.source)],  # type: ignore[misc]
                require_alias=True,
                refresh=self._settings.refresh,
                filter_path="items.*.status,items.*.error.type,items.*.error.reason,items.*.error.caused_by",
            )
        items: Sequence[Mapping[str, Any]] = answer["items"]
        return items

    def _sources(self, index: str, query: Mapping[str, Any] = LIVE) -> Iterator[Mapping[str, Any]]:
        """Every live source, or of those every one that ``query`` finds, page by page, within one point in time."""
        with translated(f"scan {index}"):
            self._client.indices.refresh(index=index)
            pit = self._client.open_point_in_time(index=index, keep_alive=PIT_KEEP_ALIVE)["id"]
        size, after = PAGE_COUNT_MAX // 10, None
        try:
            while hits := self._page(index, query, pit, size, after):
                yield from (hit["_source"] for hit in hits)
                after = hits[-1]["sort"]
                size = _next_size(hits)
        finally:
            # One that cannot be closed expires by itself, and what made the scan fail must not be hidden by it.
            with suppress(StoreError), translated(f"scan {index}"):
                self._client.close_point_in_time(id=pit)

    def _page(
        self, index: str, query: Mapping[str, Any], pit: str, size: int, after: Any
    ) -> Sequence[Mapping[str, Any]]:
        with translated(f"scan {index}"):
            answer = self._client.search(
                pit={"id": pit, "keep_alive": PIT_KEEP_ALIVE},
                query=query,
                sort="_shard_doc",
                search_after=after,
                size=size,
                track_total_hits=False,
                allow_partial_search_results=False,
            )
        hits: Sequence[Mapping[str, Any]] = answer["hits"]["hits"]
        return hits

    def _sources_of(self, index: str, keys: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        wanted = list(dict.fromkeys(keys))
        step = PAGE_COUNT_MAX // 10
        for start in range(0, len(wanted), step):
            ids = [document_id(key) for key in wanted[start : start + step]]
            yield from (doc["_source"] for doc in self._found(index, ids) if doc["found"])

    def _found(self, index: str, ids: Sequence[str], fields: Sequence[str] | None = None) -> list[Mapping[str, Any]]:
        """One answer for each id, with what was written last, refreshed or not."""
        with translated(f"read {index}"):
            docs: list[Mapping[str, Any]] = self._client.mget(index=index, ids=ids, source_includes=fields)["docs"]
        for doc in docs:
            if "error" in doc:
                raise StoreUnavailable(f"elasticsearch: read {index}: {doc['error'].get('reason')}")
        return docs


def _batches(changes: Sequence[Change], refused: dict[str, str]) -> Iterator[list[Item]]:
    """The changes, greatest version per key, in requests within both bounds; what cannot be sent is refused."""
    batch: list[Item] = []
    size = 0
    for change in newest(changes).values():
        if (item := item_of(change, refused)) is None:
            continue
        if batch and (size + item.size > BULK_BYTES_MAX or len(batch) == BULK_COUNT_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch


def _judge(item: Item, result: Mapping[str, Any], refused: dict[str, str]) -> bool:
    """File one item's answer: done, overtaken (False), refused for good, or raise what may pass."""
    status = result["status"]
    if status < 300 or status == 409:
        return bool(status < 300)
    error = result.get("error", {})
    reason = f"{error.get('type')}: {error.get('reason')}"
    if status in (400, 413) and error.get("type") != CLOSED:
        cause = error.get("caused_by", {}).get("reason")
        refused[item.key] = f"{reason} ({cause})" if cause else reason
        return True
    raise StoreUnavailable(f"elasticsearch: bulk: {status} {reason}", RETRY_AFTER_S if status == 429 else None)


def _next_size(hits: Sequence[Mapping[str, Any]]) -> int:
    mean = sum(len(hit["_source"]["text"]) for hit in hits) // len(hits) + 1
    return max(1, min(PAGE_COUNT_MAX, PAGE_BYTES // mean))


def _is(error: StoreError, kind: str) -> bool:
    return isinstance(error.__cause__, BadRequestError) and error.__cause__.error == kind
