"""Records: what a store should hold, as a pure function of a stream's state.

A record's key is owned by exactly one stream. Every record can be brought to a canonical form of
plain JSON values; its digest is what ``verify`` compares, so a sink must be able to give back what it
was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

Scalar = str | int | float | bool
Properties = Mapping[str, Any]
"""Names to scalars, or to lists of scalars; no nesting, and no None (leave the name out)."""

DIGEST_BYTES: Final = 16
"""128 bits: two differing records of 10^9 share a digest with a chance below 10^-20."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed edge, owned by the node that states it. At most one per (kind, target) and node."""

    kind: str
    target: str
    """Key of the node pointed at; it may come later (a stub stands in until then) or never."""
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A graph node with the edges it owns."""

    key: str
    kind: str
    name: str
    properties: Properties = field(default_factory=dict)
    edges: Sequence[Edge] = ()


@dataclass(frozen=True, slots=True)
class Vector:
    """A point in a vector store. ``embedding`` is filled in from ``text`` by the projector if it is None."""

    key: str
    text: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A full-text document."""

    key: str
    kind: str
    title: str
    text: str
    properties: Properties = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A relational row: any JSON-able columns beside the key."""

    key: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """A key and its JSON-able value."""

    key: str
    value: Any = None


Record = Vector | Node | Document | Row | Value


@dataclass(frozen=True, slots=True)
class Change:
    """One record as of one version of its stream; ``record`` None is a tombstone.

    A sink applies it only if ``version`` is greater than the version stored under ``key``, tombstones
    included: so changes may come in any order, any number of times, with the same end.
    """

    key: str
    stream: str
    version: int
    record: Record | None
    repair: bool = False
    """Written by ``verify --repair``: applies at an equal version too, since what stands there is wrong."""
    form: bytes | None = field(default=None, compare=False, repr=False)
    """The record's canonical form, from whoever has made it already; None: nobody has."""

    @property
    def beats(self) -> int:
        """The guard: the change applies where the stored version is below this."""
        return self.version + 1 if self.repair else self.version


@dataclass(frozen=True, slots=True)
class Stored:
    """A live record as a store holds it (tombstones and stubs are not given)."""

    key: str
    stream: str
    version: int
    digest: bytes


def newest(changes: Iterable[Change]) -> dict[str, Change]:
    """The change that wins of each key, by key."""
    winners: dict[str, Change] = {}
    for change in changes:
        known = winners.get(change.key)
        if known is None or (known.version, known.repair) < (change.version, change.repair):
            winners[change.key] = change
    return winners


def stated(record: Record) -> bytes:
    """The canonical form of a record as a projection states it.

    Raises ``TypeError`` or ``ValueError`` if it is none: a name that is None, two edges of one kind to one node. Stores
    would not refuse such a record by its name, but each fail in its own way, or keep another than was stated.
    """
    match record:
        case Vector():
            _check_texts(record, "text")
        case Node():
            _check_texts(record, "kind", "name")
            _check_edges(record)
        case Document():
            _check_texts(record, "kind", "title", "text")
        case Row() | Value():
            pass
        case _:
            raise TypeError(f"{type(record).__name__} is no record")
    return canonical(record)


def canonical(record: Record) -> bytes:
    """The record as sorted JSON. Embeddings are compared as float32, edges and properties without order."""
    match record:
        case Vector():
            body: Any = [record.text, dict(record.metadata), _float32(record.embedding)]
        case Node():
            edges = sorted([e.kind, e.target, _json(dict(e.properties)).decode()] for e in record.edges)
            body = [record.kind, record.name, dict(record.properties), edges]
        case Document():
            body = [record.kind, record.title, record.text, dict(record.properties)]
        case Row():
            body = dict(record.columns)
        case Value():
            body = record.value
    return _json([type(record).__name__, record.key, body])


def digest(record: Record, form: bytes | None = None) -> bytes:
    """BLAKE2b of the canonical form (``form``, if it is known), :data:`DIGEST_BYTES` long."""
    return hashlib.blake2b(canonical(record) if form is None else form, digest_size=DIGEST_BYTES).digest()


def storable(text: str) -> bool:
    """Whether the text can be UTF-8 (a lone surrogate cannot): what else is asked for is not there."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def by_key(records: Iterable[Record]) -> dict[str, Record]:
    """The records by key; the last one of a key stands."""
    return {r.key: r for r in records}


def _check_texts(thing: Record | Edge, *names: str) -> None:
    for name in names:
        value = getattr(thing, name)
        if not isinstance(value, str):
            raise TypeError(f"{type(thing).__name__}.{name} is {value!r:.80}, no text")


def _check_edges(node: Node) -> None:
    ends = set()
    for edge in node.edges:
        _check_texts(edge, "kind", "target")
        ends.add((edge.kind, edge.target))
    if len(ends) < len(node.edges):
        raise ValueError("two of its edges have the same kind and target")


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _float32(embedding: Sequence[float] | None) -> str | None:
    if embedding is None:
        return None
    import numpy as np  # not above: who only reads settings meets this module, too

    return np.asarray(embedding, dtype="<f4").tobytes().hex()
