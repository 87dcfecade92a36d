"""Graph nodes and their edges in Ladybug, the embedded Cypher graph database.

The statements are shaped by what Ladybug 0.22 was measured to do well. ``UNWIND … MATCH … WITH … MATCH …
CREATE`` looks both ends of an edge up in the key's index (15,000-60,000 edges/s), while one ``MATCH`` of both
ends scans the table for every edge (800/s). The edges of a few nodes are read and deleted node by node
(4,000 nodes/s whatever the graph's size), for the same over an ``UNWIND`` scans all edges. All edges are read
by ranges of the nodes' offsets.

Settings: see :func:`projectors.sinks.ladybug_graph.open_session`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, TypeVar

import orjson

from outbox.errors import RecordsRefused
from projectors.marks import UNMARKED, Sum, mark_of
from projectors.record import Change, Edge, Node, Stored, digest, newest, storable
from projectors.sinks.ladybug_graph import Session, TooLarge, open_session

TRANSACTION_NODES: Final = 2_000
TRANSACTION_EDGES: Final = 20_000
"""A larger batch is committed in parts: Ladybug keeps what is not yet committed in memory."""
STATEMENT_ROWS: Final = 1_000
"""Readers wait for a statement to end."""
TURN_STATEMENTS: Final = 50
"""Quick statements that a writer runs before it lets a reader in."""
PAGE_NODES: Final = 5_000
STUB_VERSION: Final = -1
"""Below every version of a stream: any change of the node replaces the stub."""

T = TypeVar("T")

_CREATE_NODES_TABLE: Final = """
CREATE NODE TABLE IF NOT EXISTS {node}(key STRING PRIMARY KEY, kind STRING, name STRING, stream STRING,
version INT64, live BOOL, degree INT64, properties STRING, slice INT64, mark INT64)"""
_ADD_SLICE: Final = "ALTER TABLE {node} ADD IF NOT EXISTS slice INT64"
_ADD_MARK: Final = "ALTER TABLE {node} ADD IF NOT EXISTS mark INT64"
_CREATE_EDGES_TABLE: Final = """
CREATE REL TABLE IF NOT EXISTS {edge}(FROM {node} TO {node}, kind STRING, properties STRING)"""
_DROP_EDGES_TABLE: Final = "DROP TABLE IF EXISTS {edge}"
_DROP_NODES_TABLE: Final = "DROP TABLE IF EXISTS {node}"

_VERSIONS: Final = "UNWIND $keys AS k MATCH (a:{node} {{key: k}}) RETURN a.key, a.version, a.degree"
_CREATE_NODES: Final = """
UNWIND $rows AS r CREATE (:{node} {{key: r.id, kind: r.kind, name: r.name, stream: r.stream, version: r.version,
live: r.live, degree: r.degree, properties: r.properties, slice: r.slice, mark: r.mark}})"""
_REPLACE_NODES: Final = """
UNWIND $rows AS r MATCH (a:{node} {{key: r.id}}) SET a.kind = r.kind, a.name = r.name, a.stream = r.stream,
a.version = r.version, a.live = r.live, a.degree = r.degree, a.properties = r.properties, a.slice = r.slice,
a.mark = r.mark"""
_DELETE_EDGES: Final = "MATCH (a:{node} {{key: $key}})-[e:{edge}]->(b:{node}) DELETE e"
_CREATE_EDGES: Final = """
UNWIND $rows AS r MATCH (a:{node} {{key: r.source}}) WITH a, r MATCH (b:{node} {{key: r.target}})
CREATE (a)-[:{edge} {{kind: r.kind, properties: r.properties}}]->(b)"""

_NODE: Final = "a.key, a.stream, a.version, a.kind, a.name, a.properties, a.degree"
_LAST_OFFSET: Final = "MATCH (a:{node}) RETURN max(offset(id(a)))"
_NODES_BETWEEN: Final = (
    f"MATCH (a:{{node}}) WHERE offset(id(a)) >= $low AND offset(id(a)) < $high AND a.live RETURN {_NODE}"
)
_EDGES_BETWEEN: Final = """
MATCH (a:{node})-[e:{edge}]->(b:{node}) WHERE offset(id(a)) >= $low AND offset(id(a)) < $high
RETURN a.key, e.kind, b.key, e.properties"""
_SUMS: Final = "MATCH (a:{node}) WHERE a.live RETURN a.slice, a.mark IS NULL, count(*), sum(a.mark)"
_KEYS_OF_SLICES: Final = "MATCH (a:{node}) WHERE a.live AND a.slice IN $slices RETURN a.key"
_NODES_OF: Final = f"UNWIND $keys AS k MATCH (a:{{node}} {{{{key: k}}}}) WHERE a.live RETURN {_NODE}"
_EDGES_OF: Final = """
MATCH (a:{node} {{key: $key}})-[e:{edge}]->(b:{node}) RETURN a.key, e.kind, b.key, e.properties"""


@dataclass(frozen=True, slots=True)
class _Put:
    """A node to write, as a row of the statements, and its edges as rows of theirs."""

    row: dict[str, Any]
    edges: list[dict[str, str]]
    beats: int
    """It is written where the stored version is below this."""
    size: int = field(init=False)
    """Bytes of text."""

    def __post_init__(self) -> None:
        texts = (text for row in (self.row, *self.edges) for text in row.values() if type(text) is str)
        object.__setattr__(self, "size", sum(len(text.encode()) for text in texts))

    @property
    def key(self) -> str:
        return str(self.row["id"])


class LadybugSink:
    """A :class:`~projectors.sinks.protocol.Sink` of Node. Ladybug has no alias, so ``switch`` has nothing to do."""

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, session: Session) -> None:
        self._session = session

    def prepare(self, generation: str) -> None:
        # Tables made before there were marks get the columns, empty.
        self._session.define(generation, _CREATE_NODES_TABLE, _ADD_SLICE, _ADD_MARK, _CREATE_EDGES_TABLE)

    def switch(self, generation: str) -> None:
        pass

    def drop(self, generation: str) -> None:
        self._session.define(generation, _DROP_EDGES_TABLE, _DROP_NODES_TABLE)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        refused: dict[str, str] = {}
        for puts in _transactions(_puts(changes, self._session.part_bytes, refused), self._session.part_bytes):
            self._apply(generation, puts)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        pages = self._all_pages(generation) if keys is None else self._pages_of(generation, keys)
        for page in pages:
            yield from page

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up by Ladybug."""
        sums: dict[int, Sum] = {}
        for slice_, bare, count, total in self._session.rows(_SUMS, generation):
            if bare or slice_ is None:
                slice_, total = UNMARKED, 0  # noqa: PLW2901
            known = sums.get(slice_, Sum(0, 0))
            sums[slice_] = Sum(known.count + count, known.total + int(total))
        return sums

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        keys = [key for (key,) in self._session.rows(_KEYS_OF_SLICES, generation, slices=sorted(slices))]
        for page in self._pages_of(generation, keys):
            yield from page

    def _apply(self, generation: str, puts: Sequence[_Put]) -> None:
        """One transaction. One that does not fit into the memory for pages is halved while it can be."""
        try:
            with self._session.writing():
                self._replace(generation, puts)
        except TooLarge:
            if len(puts) == 1:
                raise
            middle = len(puts) // 2
            self._apply(generation, puts[:middle])
            self._apply(generation, puts[middle:])

    def _replace(self, generation: str, puts: Sequence[_Put]) -> None:
        """In one transaction: drop what was overtaken, write nodes, delete the edges they owned, write theirs."""
        stored = self._versions(generation, [put.key for put in puts])
        newer = [put for put in puts if put.key not in stored or stored[put.key][0] < put.beats]
        known = [put for put in newer if put.key in stored]
        self._write(_REPLACE_NODES, generation, [put.row for put in known])
        self._write(_CREATE_NODES, generation, [put.row for put in newer if put.key not in stored])
        for owners in _parts([put.key for put in known if stored[put.key][1]], TURN_STATEMENTS):
            with self._session.turn():
                for key in owners:
                    self._session.rows(_DELETE_EDGES, generation, key=key)
        edges = [edge for put in newer for edge in put.edges]
        self._write_stubs(generation, {edge["target"] for edge in edges})
        self._write(_CREATE_EDGES, generation, edges)

    def _write_stubs(self, generation: str, targets: set[str]) -> None:
        there = self._versions(generation, sorted(targets))
        self._write(_CREATE_NODES, generation, [_stub(key) for key in sorted(targets - there.keys())])

    def _versions(self, generation: str, keys: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The stored version and number of owned edges, by key."""
        found = (self._session.rows(_VERSIONS, generation, keys=part) for part in _parts(keys, STATEMENT_ROWS))
        return {key: (version, degree) for rows in found for key, version, degree in rows}

    def _write(self, template: str, generation: str, rows: Sequence[dict[str, Any]]) -> None:
        for part in _parts(rows, STATEMENT_ROWS):
            self._session.rows(template, generation, rows=part)

    def _all_pages(self, generation: str) -> Iterator[list[Stored]]:
        last = self._session.rows(_LAST_OFFSET, generation)[0][0]
        for low in range(0, 0 if last is None else last + 1, PAGE_NODES):
            span = {"low": low, "high": low + PAGE_NODES}
            with self._session.reading():
                nodes = self._session.rows(_NODES_BETWEEN, generation, **span)
                edges = self._session.rows(_EDGES_BETWEEN, generation, **span)
            yield _stored(nodes, edges)

    def _pages_of(self, generation: str, keys: Sequence[str]) -> Iterator[list[Stored]]:
        for part in _parts([key for key in dict.fromkeys(keys) if storable(key)], STATEMENT_ROWS):
            with self._session.reading():
                nodes = self._session.rows(_NODES_OF, generation, keys=part)
                owners = [row[0] for row in nodes if row[6]]
                edges = [row for key in owners for row in self._session.rows(_EDGES_OF, generation, key=key)]
            yield _stored(nodes, edges)


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[LadybugSink]:
    """A sink for one projection; sinks and readers of one process share the database."""
    with open_session(projection, settings) as session:
        yield LadybugSink(session)


def _puts(changes: Sequence[Change], bytes_max: int, refused: dict[str, str]) -> list[_Put]:
    """The greatest version of each key as rows; what no graph can hold goes to ``refused``."""
    puts = []
    for change in newest(changes).values():
        try:
            put = _put(change)
        except (TypeError, UnicodeEncodeError) as error:
            refused[change.key] = str(error)
            continue
        if put.size > bytes_max:
            refused[change.key] = (
                f"a node of {put.size} bytes, its edges counted in, is larger than {bytes_max}: "
                "a greater buffer_mib helps"
            )
        else:
            puts.append(put)
    return puts


def _put(change: Change) -> _Put:
    node = change.record
    if node is None:
        return _Put(_row(change, "", "", "", 0), [], change.beats)
    if not isinstance(node, Node):
        raise TypeError(f"ladybug takes Node, not {type(node).__name__}")
    edges = [_edge(node.key, edge) for edge in node.edges]
    return _Put(_row(change, node.kind, node.name, _json(node.properties), len(edges)), edges, change.beats)


def _row(change: Change, kind: str, name: str, properties: str, degree: int) -> dict[str, Any]:
    row = {"id": change.key, "kind": kind, "name": name, "stream": change.stream, "properties": properties}
    mark = mark_of(change)
    # No nulls: Ladybug takes a column of nothing else for one of texts.
    marked = {"slice": UNMARKED, "mark": 0} if mark is None else {"slice": mark.slice, "mark": mark.mark}
    return _encodable(row) | {"version": change.version, "live": change.record is not None, "degree": degree, **marked}


def _edge(source: str, edge: Edge) -> dict[str, str]:
    properties = _json(edge.properties)
    return _encodable({"source": source, "target": edge.target, "kind": edge.kind, "properties": properties})


def _stub(key: str) -> dict[str, Any]:
    text = {"id": key, "kind": "", "name": "", "stream": "", "properties": ""}
    return text | {"version": STUB_VERSION, "live": False, "degree": 0, "slice": UNMARKED, "mark": 0}


def _encodable(row: dict[str, str]) -> dict[str, str]:
    for text in row.values():
        text.encode()
    return row


def _json(properties: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(properties)).decode()


def _stored(nodes: Iterable[Sequence[Any]], edges: Iterable[Sequence[Any]]) -> list[Stored]:
    owned: defaultdict[str, list[Edge]] = defaultdict(list)
    for source, kind, target, properties in edges:
        owned[source].append(Edge(kind, target, orjson.loads(properties)))
    return [
        Stored(key, stream, version, digest(Node(key, kind, name, orjson.loads(properties), owned[key])))
        for key, stream, version, kind, name, properties, _degree in nodes
    ]


def _transactions(puts: Sequence[_Put], bytes_max: int) -> Iterator[list[_Put]]:
    """The nodes cut where a transaction would pass TRANSACTION_NODES, TRANSACTION_EDGES or ``bytes_max``."""
    part: list[_Put] = []
    edges = size = 0
    for put in puts:
        is_full = len(part) == TRANSACTION_NODES or edges + len(put.edges) > TRANSACTION_EDGES
        if part and (is_full or size + put.size > bytes_max):
            yield part
            part, edges, size = [], 0, 0
        part.append(put)
        edges += len(put.edges)
        size += put.size
    if part:
        yield part


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
