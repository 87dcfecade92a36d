"""The form in which Elasticsearch holds a document: the index's mapping, ``_id``, ``_source``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from projectors.marks import mark_of
from projectors.record import Change, Document, Stored, digest

DOCUMENT_BYTES_MAX: Final = 10 * 1024 * 1024
"""One beyond it would be answered 429 by a small node for as long as it is sent: better refused for good."""
ID_BYTES_MAX: Final = 512
"""Elasticsearch's limit of ``_id``."""
LIVE: Final[Mapping[str, Any]] = {"bool": {"must_not": {"term": {"deleted": True}}}}

_KEYWORD: Final = {"type": "keyword", "ignore_above": 8_000}  # a term holds 32,766 bytes, a character up to 4
# Read back with the document and never searched by: an index of them would be a seventh of what a document costs.
_KEPT: Final = {"index": False, "doc_values": False}
MAPPINGS: Final[Mapping[str, Any]] = {
    "dynamic": "strict",
    "properties": {
        "key": {**_KEYWORD, "fields": {"words": {"type": "text"}}},
        "stream": {"type": "keyword", **_KEPT},
        "version": {"type": "long", **_KEPT},
        "kind": _KEYWORD,
        "title": {"type": "text", "fields": {"raw": {"type": "keyword", "ignore_above": 1_000}}},
        "text": {"type": "text"},
        "properties": {"type": "flattened", "ignore_above": 1_000},
        "deleted": {"type": "boolean"},
        "slice": {"type": "short"},
        "mark": {"type": "long", "index": False},
    },
}
MARKS: Final[Mapping[str, Any]] = {n: MAPPINGS["properties"][n] for n in ("slice", "mark")}
"""What an index made before there were marks lacks."""


def document_id(key: str) -> str:
    """The key itself, or a BLAKE2b of it when it is too long (or too short) for an ``_id``."""
    data = key.encode()
    return key if 0 < len(data) <= ID_BYTES_MAX else "blake2b:" + hashlib.blake2b(data, digest_size=32).hexdigest()


class Item(NamedTuple):
    """One change as two lines of a bulk request; it applies where the stored version is below ``beats``."""

    key: str
    id: str
    beats: int
    action: bytes
    source: bytes

    @property
    def size(self) -> int:
        """Bytes, with the two line ends."""
        return len(self.action) + len(self.source) + 2

    def unless_changed(self, doc: Mapping[str, Any]) -> Item:
        """The same change, written only if the document still is what ``doc``, an answer of ``mget``, says."""
        if not doc["found"]:
            return self._replace(action=orjson.dumps({"create": {"_id": self.id}}))
        still = {"if_seq_no": doc["_seq_no"], "if_primary_term": doc["_primary_term"]}
        return self._replace(action=orjson.dumps({"index": {"_id": self.id, **still}}))


def item_of(change: Change, refused: dict[str, str]) -> Item | None:
    """The change as two lines; one that cannot be sent is put into ``refused`` instead."""
    try:
        guard = "external_gte" if change.repair else "external"
        id_ = document_id(change.key)
        head = orjson.dumps({"index": {"_id": id_, "version": change.version, "version_type": guard}})
        item = Item(change.key, id_, change.beats, head, orjson.dumps(_source(change)))
    except (TypeError, ValueError) as error:  # orjson: a lone surrogate, an integer beyond 64 bits, a foreign type
        refused[change.key] = f"not JSON: {error}"
        return None
    if item.size > DOCUMENT_BYTES_MAX:
        refused[change.key] = f"a document of {item.size} bytes is larger than {DOCUMENT_BYTES_MAX}"
        return None
    return item


def _source(change: Change) -> dict[str, Any]:
    match change.record:
        case None:
            return {"deleted": True, "version": change.version}
        case Document() as document:
            mark = mark_of(change)
            return {
                "slice": mark and mark.slice,
                "mark": mark and mark.mark,
                "key": document.key,
                "stream": change.stream,
                "version": change.version,
                "kind": document.kind,
                "title": document.title,
                "text": document.text,
                "properties": dict(document.properties),
            }
        case other:
            raise TypeError(f"the elasticsearch sink takes Document, not {type(other).__name__}")


def stored_of(source: Mapping[str, Any]) -> Stored:
    """A live document's ``_source`` as what it holds."""
    record = Document(
        key=source["key"],
        kind=source["kind"],
        title=source["title"],
        text=source["text"],
        properties=source["properties"],
    )
    return Stored(record.key, source["stream"], source["version"], digest(record))


def stored_version(doc: Mapping[str, Any]) -> int:
    """The version within a document, live or tombstone; 0 if there is none, or none that we wrote."""
    version = doc["_source"].get("version") if doc["found"] else None
    return version if isinstance(version, int) else 0
