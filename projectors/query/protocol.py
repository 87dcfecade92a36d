"""What a store must be able to answer to take part in searches: one small protocol per kind of question.

Readers are found by entry point group ``outbox.readers`` under the store's name; the object is a
function ``open(projection: str, settings: Mapping[str, Any]) -> ContextManager[Reader]``. Every call
names the generation to ask, so that a reader can never mix two. Tombstones and stubs never show.
All raise :class:`~outbox.errors.StoreUnavailable` when the store cannot answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from outbox.errors import StoreError, StoreUnavailable

Direction = Literal["out", "in", "both"]

DEPTH_MAX = 6
"""Longest path searched: beyond it nearly everything is connected to everything."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer. ``score``: greater is better; comparable within one store's answer only."""

    key: str
    score: float
    store: str
    kind: str = ""
    title: str = ""
    snippet: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node one edge away. ``direction``: ``out`` if the asked node owns the edge, else ``in``."""

    key: str
    kind: str
    name: str
    edge: str
    direction: Literal["out", "in"]
    store: str


@dataclass(frozen=True, slots=True)
class Path:
    """A path of live nodes: ``nodes[i]`` --``edges[i]``--> ``nodes[i + 1]`` (edges are followed both ways)."""

    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    store: str


@contextmanager
def answering() -> Iterator[None]:
    """Whatever fails while a store is asked is the store's failing, not a record's: ``StoreUnavailable``."""
    try:
        yield
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise StoreUnavailable(str(error)) from error


class SemanticReader(Protocol):
    def nearest(self, generation: str, embedding: Sequence[float], limit: int) -> Sequence[Hit]:
        """The records nearest to the vector by cosine, best first; score = cosine similarity."""


class TextReader(Protocol):
    def match(self, generation: str, text: str, limit: int) -> Sequence[Hit]:
        """The documents that match the words best (any words; any user input is safe), best first."""


class GraphReader(Protocol):
    def neighbours(
        self, generation: str, key: str, direction: Direction, edges: Sequence[str] | None, limit: int
    ) -> Sequence[Neighbour]:
        """The live nodes one edge away, by kinds of edges (None = all), ordered by edge kind then key."""

    def paths(self, generation: str, source: str, target: str, depth: int, limit: int) -> Sequence[Path]:
        """Shortest paths first, without repeated nodes, at most ``depth`` (≤ DEPTH_MAX) edges."""

    def find(self, generation: str, name: str, limit: int) -> Sequence[Hit]:
        """The live nodes whose key or name equals ``name``; those by key first."""


Reader = SemanticReader | TextReader | GraphReader
