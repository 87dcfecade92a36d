"""The form in which Neo4j holds a node: labels, plain properties, and JSON for what it would bend.

Names that start with ``_`` are the sink's (see :mod:`projectors.sinks.neo4j`); ``name`` is the node's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from projectors.marks import mark_of
from projectors.record import Change, Edge, Node, Properties

NAME_LENGTH_MAX: Final = 1_000
"""Characters of a name that are indexed: an index entry holds about 8,000 bytes."""
_INT64: Final = range(-(2**63), 2**63)


class Row(NamedTuple):
    """One change as Neo4j takes it."""

    key: str
    beats: int
    kind: str | None
    properties: Mapping[str, Any]
    edges: Mapping[tuple[str, str], Mapping[str, Any]]
    """Properties by kind and target."""
    edges_hash: int
    """Of the edges; 0 for none."""
    repairs: bool

    def characters(self) -> int:
        """About how many it has, as text."""
        return len(orjson.dumps([self.properties, *([*ends, given] for ends, given in self.edges.items())]))

    def differs(self, edges_hash: int) -> bool:
        """Whether a node whose edges have this hash may own others than these. A repair does not believe it."""
        return self.repairs or self.edges_hash != edges_hash


def row_of(change: Change) -> Row:
    """The change as Neo4j takes it. Raises TypeError or ValueError for what no store could give back."""
    own: dict[str, Any] = {"_key": change.key, "_stream": change.stream, "_version": change.version}
    match change.record:
        case None:
            return Row(change.key, change.beats, None, {**own, "_live": False, "_edges": 0}, {}, 0, change.repair)
        case Node() as node:
            mark = mark_of(change)  # refuses here, by name, what the driver would refuse for the whole batch
            if mark:
                own["_slice"], own["_mark"] = mark.slice, mark.mark
            own["_live"], own["_kind"], own["name"] = True, node.kind, node.name[:NAME_LENGTH_MAX]
            if len(node.name) > NAME_LENGTH_MAX:
                own["_name"] = node.name
            edges = {(edge.kind, edge.target): _native(edge.properties) for edge in node.edges}
            own["_edges"] = hashed = _hash(edges)
            properties = _native(node.properties, "name") | own
            return Row(change.key, change.beats, node.kind, properties, edges, hashed, change.repair)
        case other:
            raise TypeError(f"the neo4j sink takes Node, not {type(other).__name__}")


def _hash(edges: Mapping[tuple[str, str], Mapping[str, Any]]) -> int:
    """63 bits of them, and 0 for none: two that differ have the same one with a chance below 10^-18."""
    if not edges:
        return 0
    whole = orjson.dumps([[*ends, edges[ends]] for ends in sorted(edges)], option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest()) >> 1


def _native(properties: Properties, *reserved: str) -> dict[str, Any]:
    """Plain properties for users' queries; the rest, exactly as given, as JSON in ``_json``."""
    if not properties:
        return {}
    plain: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in properties.items():
        if not name or name[0] == "_" or name in reserved or "\x00" in name:
            rest[name] = value
        elif _is_plain_scalar(value):
            plain[name] = value
        elif isinstance(value, list | tuple) and _is_plain_list(value):
            plain[name] = list(value)
        else:
            rest[name] = value
    if rest:
        plain["_json"] = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS).decode()
    return plain


def _is_plain_list(value: Sequence[Any]) -> bool:
    """Whether Neo4j gives this list back as it was: it turns [1, 2.5] into floats and [] into any list."""
    return bool(value) and len({type(item) for item in value}) == 1 and all(_is_plain_scalar(v) for v in value)


def _is_plain_scalar(value: Any) -> bool:
    kind = type(value)
    return kind is str or kind is float or kind is bool or (kind is int and value in _INT64)


def _given(stored: Mapping[str, Any], *reserved: str) -> dict[str, Any]:
    """The properties as they were given to :func:`_native`."""
    plain = {k: v for k, v in stored.items() if not k.startswith("_") and k not in reserved}
    return plain | orjson.loads(stored["_json"]) if "_json" in stored else plain


def same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Equality that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    return ours.keys() == theirs.keys() and all(repr(ours[k]) == repr(theirs[k]) for k in ours)


def labels_of(kind: str | None) -> list[str]:
    """The label that shows a kind, unless it could be taken for one of the sink's own."""
    if not kind or "\x00" in kind or kind.startswith("Outbox") or (kind.startswith("p_") and "." in kind):
        return []
    return [kind]


def rebuilt(properties: Mapping[str, Any], edges: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Node:
    """The node as it was given. Raises KeyError, TypeError or ValueError if someone else has changed its form."""
    return Node(
        key=properties["_key"],
        kind=properties["_kind"],
        name=properties.get("_name", properties["name"]),
        properties=_given(properties, "name"),
        edges=[Edge(kind, target, _given(stored)) for kind, target, stored in edges],
    )
