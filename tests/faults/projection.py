"""The projections that the product runs in these tests. What they should come to is written apart, in ``model.py``.

A stream is a set of numbered parts. Its own record tells how many events it has had and chains their ids, so that an
event left out, doubled or taken out of turn shows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from outbox.event import Event
from projectors.record import Document, Edge, Node, Record, Row, Vector

POISON = "!"
MENDED = "OUTBOX_TEST_MENDED"
"""In the environment of a projector whose projection can fold poison (it passes it by)."""


@dataclass(frozen=True)
class Tally:
    events: int = 0
    chain: str = ""
    alive: bool = False
    parts: Mapping[str, int] = field(default_factory=dict)


class Tallies:
    """The fold; the classes below say in which form records are kept."""

    categories = ("thing",)

    def fold(self, state: Tally | None, event: Event) -> Tally:
        before = state or Tally()
        chain = hashlib.sha256(f"{before.chain}{event.version}:{event.id}".encode()).hexdigest()[:16]
        if event.type == "entity.deleted":
            return Tally(before.events + 1, chain)
        if event.type == "thing.noted":
            len(event.data["what"])  # a projector that does not know the type cannot read this
            return replace(before, events=before.events + 1, chain=chain)
        given = dict(event.data["properties"])
        if given.pop(POISON, None) is not None and MENDED not in os.environ:
            raise ValueError("poison")
        kept = {name: value for name, value in (before.parts | given).items() if value is not None}
        return Tally(before.events + 1, chain, True, kept)

    def records(self, stream: str, state: Tally) -> Iterator[Record]:
        if state.alive:
            yield self.record(stream, {"events": state.events, "chain": state.chain})
            for name, value in state.parts.items():
                yield self.record(f"{stream}#{name}", {"value": value})

    def record(self, key: str, content: Mapping[str, Any]) -> Record:
        raise NotImplementedError


class Rows(Tallies):
    def record(self, key: str, content: Mapping[str, Any]) -> Row:
        return Row(key, content)


class Documents(Tallies):
    def record(self, key: str, content: Mapping[str, Any]) -> Document:
        return Document(key, "tally", key, _spoken(content), content)


class Vectors(Tallies):
    def record(self, key: str, content: Mapping[str, Any]) -> Vector:
        number = content.get("value", content.get("events", 0))
        return Vector(key, _spoken(content), content, [1.0, float(number), 2.0, 3.0])


class Nodes(Tallies):
    """A stream's node has an edge to each of its parts."""

    def records(self, stream: str, state: Tally) -> Iterator[Record]:
        edges = tuple(Edge("has", f"{stream}#{name}") for name in state.parts)
        for record in super().records(stream, state):
            yield replace(record, edges=edges) if record.key == stream else record

    def record(self, key: str, content: Mapping[str, Any]) -> Node:
        return Node(key, "tally", key, content)


def _spoken(content: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in sorted(content.items()))
