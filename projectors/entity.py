"""The built-in domain: generic entities with parts and links, and three projections of them.

An entity is a stream; its record key is the stream's name. A part's key is ``<stream>#<part key>``. Any
producer may use the ``entity.*`` events for its own things; ``outbox ingest`` does so for source files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from outbox.event import Event
from projectors.record import Document, Edge, Node, Record, Scalar, Vector

VECTOR_TEXT_LENGTH_MAX: Final = 8_000
"""Characters embedded: what lies beyond no longer moves a vector noticeably."""

RESETTING: Final = frozenset({"entity.upserted", "entity.deleted"})
"""Types of events behind which nothing that came before matters."""


@dataclass(frozen=True, slots=True)
class Link:
    kind: str
    target: str
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity or one of its parts, as records are made from it."""

    key: str
    kind: str
    name: str
    text: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    parts: tuple[Entity, ...] = ()

    def all(self) -> Iterator[Entity]:
        """The entity itself, then its parts."""
        yield self
        yield from self.parts


def fold(state: Entity | None, event: Event) -> Entity | None:
    """The entity after the event. Events of other types leave it as it is.

    A patch or link of an entity that was never upserted makes one with the stream's own name, so that
    producers may send facts in the order they learn them.
    """
    match event.type:
        case "entity.upserted":
            return _upserted(event.stream, event.data)
        case "entity.patched":
            return _patched(state or _bare(event.stream), event.data)
        case "entity.linked":
            base = state or _bare(event.stream)
            return replace(base, links=(*_without(base, event.data), _link(event.data)))
        case "entity.unlinked":
            return state and replace(state, links=_without(state, event.data))
        case "entity.deleted":
            return None
    return state


def _upserted(stream: str, data: Mapping[str, Any]) -> Entity:
    return _entity(stream, data, tuple([_entity(f"{stream}#{p['key']}", p) for p in data["parts"]]))


def _entity(key: str, data: Mapping[str, Any], parts: tuple[Entity, ...] = ()) -> Entity:
    links = tuple([_link(link) for link in data["links"]])
    return Entity(key, data["kind"], data["name"], data["text"], _present(data["properties"]), links, parts)


def _link(data: Mapping[str, Any]) -> Link:
    return Link(data["kind"], data["target"], _present(data["properties"]))


def _present(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Without the nulls: no store tells a null from an absence in the same way."""
    return {k: v for k, v in properties.items() if v is not None}


def _bare(stream: str) -> Entity:
    category, _, name = stream.partition("-")
    return Entity(stream, category, name or stream)


def _patched(state: Entity, data: Mapping[str, Any]) -> Entity:
    kept = {k: v for k, v in state.properties.items() if k not in data["removed"]}
    changed = {**kept, **data["properties"]}
    return replace(
        state,
        name=state.name if data["name"] is None else data["name"],
        text=state.text if data["text"] is None else data["text"],
        properties=_present(changed),
    )


def _without(state: Entity, data: Mapping[str, Any]) -> tuple[Link, ...]:
    return tuple(link for link in state.links if (link.kind, link.target) != (data["kind"], data["target"]))


@dataclass(frozen=True, slots=True)
class EntityProjection:
    """What the three have in common: the fold, what makes void what came before, and one record an entity or part."""

    categories: Sequence[str]

    def fold(self, state: Entity | None, event: Event) -> Entity | None:
        return fold(state, event)

    def resets(self, stream: str, version: int, type: str) -> bool:  # noqa: A002  # the protocol's name for it
        """An upsert says all there is, and so does an end. Whoever overrides :meth:`fold` says it anew."""
        del stream, version
        return type in RESETTING

    def records(self, stream: str, state: Entity | None) -> Iterable[Record]:
        del stream  # the entity knows its key
        return () if state is None else (self.record(e, state) for e in state.all())

    def record(self, entity: Entity, root: Entity) -> Record:
        raise NotImplementedError


class EntityVectors(EntityProjection):
    """One vector an entity or part: its name and text."""

    def record(self, entity: Entity, root: Entity) -> Vector:
        metadata: dict[str, Scalar] = {"kind": entity.kind, "name": entity.name, "root": root.name}
        return Vector(entity.key, f"{entity.name}\n{entity.text}"[:VECTOR_TEXT_LENGTH_MAX].strip(), metadata)


class EntityGraph(EntityProjection):
    """One node an entity or part, with its links as edges."""

    def record(self, entity: Entity, root: Entity) -> Node:
        del root
        edges = {(link.kind, link.target): Edge(link.kind, link.target, link.properties) for link in entity.links}
        return Node(entity.key, entity.kind, entity.name, entity.properties, tuple(edges.values()))


class EntityDocuments(EntityProjection):
    """One document an entity or part."""

    def record(self, entity: Entity, root: Entity) -> Document:
        return Document(entity.key, entity.kind, entity.name, entity.text, {**entity.properties, "root": root.name})
