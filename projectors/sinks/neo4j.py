"""Nodes and their edges in Neo4j, one label per generation, guarded by lock-then-compare.

A node carries the labels ``Outbox``, its generation's (``p_<projection>.<generation>``, under which ``_key`` is
unique) and its kind, so that ``MATCH (c:Class:`p_code.g1`)-[:CALLS]->(f)`` reads as one would write it.
``name`` holds the node's name; properties are plain ones where Neo4j can hold them. What it cannot hold as
it was given (mixed or nested lists, integers beyond 64 bits, names that start with ``_`` or are ``name``) is
kept as JSON in ``_json``. Names that start with ``_`` belong to the sink:

===========  =========================================================================================
``_key``     the record's key, unique in the generation
``_version`` the stream's version; absent on a stub, which stands in for an edge's missing end
``_live``    false for stubs and tombstones
``_slice``   and ``_mark``, of a live node: see :mod:`projectors.marks`
``_edges``   a hash of the edges that the node owns, written with them: where it stays, they are not looked at
``_stream``  ``_kind`` ``_json`` ``_name`` (a name too long for its index) as they say
===========  =========================================================================================

A node owns the edges that leave it for nodes of its generation. ``(:OutboxGeneration {projection,
generation, label, serving})`` tells plain Cypher which label serves.

Settings: ``url``; optional ``username``, ``password``, ``database``, ``timeout_s`` (30, of one transaction)
and ``retry_s`` (10, for deadlocks and the like). Needs Neo4j 5.26 or newer; Community is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar, Final, Literal, NamedTuple

import neo4j

from outbox.errors import RecordsRefused, StoreError, StoreUnavailable
from projectors.marks import Sum
from projectors.record import Change, Stored, digest, newest
from projectors.sinks.neo4j_form import Row, labels_of, rebuilt, row_of, same
from projectors.sinks.neo4j_session import Connection, cypher, label_of, parse

ROWS_MAX: Final = 1_000
"""Nodes written in one transaction: more gain no speed and hold locks longer."""
EDGES_MAX: Final = 10_000
"""Edges written in one transaction, if no single node owns more."""
PAGE_COUNT: Final = 250
"""Nodes a scan holds in memory."""
OVERTAKEN_MAX: Final = 10
"""Each time another writer got on, so there is no livelock; more means two processes own the same streams."""
DROP_WITHIN_S: Final = 3_600.0
"""At 7,000 to 24,000 nodes a second, some 25 million nodes or more; called again it goes on where it stopped."""

_PREPARE: Final = (
    "CREATE CONSTRAINT outbox_generation IF NOT EXISTS FOR (g:OutboxGeneration) REQUIRE g.label IS UNIQUE",
    "CREATE CONSTRAINT LABEL IF NOT EXISTS FOR (n:LABEL) REQUIRE n._key IS UNIQUE",
    "CREATE INDEX `NAME: name` IF NOT EXISTS FOR (n:LABEL) ON (n.name)",
)
_MARK: Final = """
MERGE (g:OutboxGeneration {label: $label})
ON CREATE SET g.projection = $projection, g.generation = $generation, g.serving = false
"""
_MARKED: Final = "MATCH (g:OutboxGeneration {label: $label}) RETURN g.label AS label"
_SWITCH: Final = """
MATCH (:OutboxGeneration {label: $label})
MATCH (g:OutboxGeneration {projection: $projection})
SET g.serving = (g.label = $label)
RETURN g.label AS label
"""
_DROP: Final = (
    "MATCH (g:OutboxGeneration {label: $label}) DELETE g",
    "MATCH (n:LABEL) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 1000 ROWS",
    "DROP INDEX `NAME: name` IF EXISTS",
    "DROP CONSTRAINT LABEL IF EXISTS",
)
# Answers come as one list: a message a row costs the driver more than the rest of the transaction.
_SEEN: Final = """
UNWIND $keys AS key MATCH (n:LABEL {_key: key}) WHERE n._version IS NOT NULL
RETURN collect([key, n._version, coalesce(n._edges, -1), n._kind]) AS found
"""
_OWNED: Final = """
UNWIND $keys AS key MATCH (n:LABEL {_key: key})-[r]->(m:LABEL)
RETURN collect([key, elementId(r), type(r), m._key, properties(r)]) AS found
"""
# Rows are lists, [key] of a stub or [key, seen version, seen edges, labels, properties], and so are edges,
# [kind, target, properties]: maps would send every name with every row, and packing is half of what a write costs.
# Removing a property that is not there writes nothing, but takes the node's write lock before anything is read.
_WRITE: Final = """
UNWIND $rows AS row
MERGE (n:LABEL {_key: row[0]}) ON CREATE SET n:Outbox, n._live = false
REMOVE n._lock
WITH n, row WHERE size(row) > 1 AND coalesce(n._version, 0) = row[1] AND coalesce(n._edges, -1) = row[2]
SET n = row[4], n:$(row[3])
RETURN count(*) AS written
"""
_UNLABEL: Final = "UNWIND $rows AS row MATCH (n:LABEL {_key: row.key}) REMOVE n:$(row.labels)"
_CUT: Final = "UNWIND $ids AS id MATCH ()-[r]->() WHERE elementId(r) = id DELETE r"
_CHANGE: Final = "UNWIND $edges AS edge MATCH ()-[r]->() WHERE elementId(r) = edge[0] SET r = edge[1]"
_JOIN: Final = """
UNWIND $rows AS row MATCH (a:LABEL {_key: row[0]})
UNWIND row[1] AS edge MATCH (b:LABEL {_key: edge[1]})
CREATE (a)-[r:$(edge[0])]->(b) SET r = edge[2]
"""
_PAGE: Final = """
MATCH (n:LABEL) WHERE n._key >= $after WITH n ORDER BY n._key LIMIT $limit
RETURN n._key AS key, CASE WHEN n._live THEN properties(n) END AS properties, COLLECT {
    MATCH (n)-[r]->(m:LABEL) WHERE n._live RETURN [type(r), m._key, properties(r)]
} AS edges
"""
_SUMS: Final = """
MATCH (n:LABEL) WHERE n._live
WITH CASE WHEN n._mark IS NULL THEN -1 ELSE coalesce(n._slice, -1) END AS slice, n._mark AS mark
RETURN slice, count(*) AS count, sum(CASE WHEN slice >= 0 THEN mark ELSE 0 END) AS total
"""
_KEYS_OF_SLICES: Final = "MATCH (n:LABEL) WHERE n._live AND n._slice IN $slices RETURN n._key AS key"
_THESE: Final = """
UNWIND $keys AS key MATCH (n:LABEL {_key: key}) WHERE n._live
RETURN n._key AS key, properties(n) AS properties, COLLECT {
    MATCH (n)-[r]->(m:LABEL) RETURN [type(r), m._key, properties(r)]
} AS edges
"""


@contextmanager
def open_sink(projection: str, settings: Mapping[str, Any]) -> Iterator[Neo4jSink]:
    """The sink of one projection. Opens no connection yet; raises :class:`SettingsError`."""
    with Connection(parse(settings)) as connection:
        yield Neo4jSink(connection, projection)


class Neo4jSink:
    """Keeps one projection's nodes and edges; see the module's text and :class:`projectors.sinks.protocol.Sink`."""

    conditional: ClassVar[Literal[True]] = True

    def __init__(self, connection: Connection, projection: str) -> None:
        self._connection = connection
        self._projection = projection

    def prepare(self, generation: str) -> None:
        """Make the generation's constraint, name index and mark, and wait for the index."""
        label = label_of(self._projection, generation)
        with self._connection.session(f"prepare {label}") as session:
            for statement in _PREPARE:
                session.run(cypher(statement, label)).consume()
            session.run("CALL db.awaitIndexes($seconds)", seconds=ceil(self._connection.settings.timeout_s)).consume()
            session.run(_MARK, label=label, projection=self._projection, generation=generation).consume()

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        """Write the changes in transactions of bounded size; see :meth:`_write` for the guard."""
        refused: dict[str, str] = {}
        label = label_of(self._projection, generation)
        for batch in _batches(_rows(changes, refused)):
            self._apply(label, batch, refused)
        if refused:
            raise RecordsRefused(refused)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        """Live nodes rebuilt from their labels' index, properties and edges, streamed page by page."""
        label = label_of(self._projection, generation)
        rows = self._pages(label) if keys is None else self._these(label, list(dict.fromkeys(keys)))
        return (_stored(row) for row in rows)

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up by Neo4j."""
        rows = self._read(cypher(_SUMS, label_of(self._projection, generation)))
        return {row["slice"]: Sum(row["count"], row["total"]) for row in rows}

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        """Their keys first, in one go over the nodes: 100 bytes each of what is then read page by page."""
        label = label_of(self._projection, generation)
        keys = [row["key"] for row in self._read(cypher(_KEYS_OF_SLICES, label), slices=sorted(slices))]
        return (_stored(row) for row in self._these(label, keys))

    def switch(self, generation: str) -> None:
        """Neo4j's Community edition has no aliases: mark the generation as the one that serves."""
        label = label_of(self._projection, generation)
        with self._connection.session(f"switch to {label}") as session:
            if not list(session.run(_SWITCH, label=label, projection=self._projection)):
                raise StoreUnavailable(f"neo4j: generation {label} has not been prepared")

    def drop(self, generation: str) -> None:
        """Unmark the generation, so that late writers stop, then remove its nodes and indexes."""
        label = label_of(self._projection, generation)
        with self._connection.session(f"drop {label}", DROP_WITHIN_S) as session:
            for statement in _DROP:
                session.run(cypher(statement, label), label=label).consume()

    def _apply(self, label: str, batch: Sequence[Row], refused: dict[str, str]) -> None:
        """One transaction. A batch that is refused is halved until the culprit stands alone."""
        bounded = neo4j.unit_of_work(timeout=self._connection.settings.timeout_s)
        try:
            with self._connection.session("apply") as session:
                _again_if_overtaken(lambda: session.execute_write(bounded(_write), label, batch))
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(batch) == 1:
                refused[batch[0].key] = str(error)
                return
            middle = len(batch) // 2
            self._apply(label, batch[:middle], refused)
            self._apply(label, batch[middle:], refused)

    def _pages(self, label: str) -> Iterator[neo4j.Record]:
        """Every live row, in pages by key. A page starts at the last one's last key, which it gives again."""
        after: str | None = None
        while True:
            count, previous = 0, after
            for row in self._read(cypher(_PAGE, label), after=previous or "", limit=PAGE_COUNT):
                count, after = count + 1, row["key"]
                if row["key"] != previous and row["properties"] is not None:
                    yield row
            if count < PAGE_COUNT:
                return

    def _these(self, label: str, keys: Sequence[str]) -> Iterator[neo4j.Record]:
        for start in range(0, len(keys), PAGE_COUNT):
            yield from self._read(cypher(_THESE, label), keys=keys[start : start + PAGE_COUNT])

    def _read(self, statement: str, **parameters: Any) -> list[neo4j.Record]:
        with self._connection.session("scan") as session:
            return list(session.run(statement, parameters))


class _OvertakenError(Exception):
    """A node was written by someone else between being read and being locked."""


def _again_if_overtaken(write: Callable[[], None]) -> None:
    for _ in range(OVERTAKEN_MAX):
        try:
            return write()
        except _OvertakenError:
            continue
    raise StoreUnavailable(f"neo4j: apply: overtaken {OVERTAKEN_MAX} times by other writers of the same nodes")


def _write(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row]) -> None:
    """Apply a batch in one transaction; a crash anywhere leaves nothing of it.

    1. Read versions and hashes of edges, without locks, and leave out what is overtaken: versions only rise, so it
       stays so.
    2. Lock the nodes, and the ends of the edges of those that are new, in the order of their keys (so that
       concurrent batches mostly wait for each other instead of deadlocking), making missing ones as stubs.
       Write each node if its version and hash are still those read in 1; if one is not, roll back and start again.
    3. Read the edges owned so far by nodes that get others, or are repaired. This must come after the locks:
       without them, Neo4j shows a commit of someone else in parts, the new version already and the old edges still.
    4. Lock the ends of the edges that came or went, then cut, change and join.
    """
    if not list(tx.run(_MARKED, label=label)):
        raise StoreUnavailable(f"neo4j: generation {label} has not been prepared")
    seen = {key: _Seen(*rest) for key, *rest in _list(tx, cypher(_SEEN, label), [row.key for row in batch])}
    batch = [row for row in batch if row.beats > seen.get(row.key, _NEW).version]
    if not batch:
        return
    _write_nodes(tx, label, batch, seen)
    batch = [row for row in batch if row.repairs or seen.get(row.key, _NEW).edges != row.edges_hash]
    edges = _difference(tx, label, batch, [row.key for row in batch if row.key in seen])
    _each(tx, cypher(_WRITE, label), "rows", [[key] for key in sorted(edges.ends)])
    _each(tx, _CUT, "ids", edges.stale)
    _each(tx, _CHANGE, "edges", edges.changed)
    _each(tx, cypher(_JOIN, label), "rows", [[key, joins] for key, joins in edges.missing.items() if joins])


def _list(tx: neo4j.ManagedTransaction, statement: str, keys: Sequence[str]) -> list[Any]:
    found: list[Any] = tx.run(statement, keys=keys).single(strict=True)["found"]
    return found


class _Seen(NamedTuple):
    """What a node was when it was first looked at."""

    version: int
    edges: int
    """Their hash; -1, which no edges have, of a node without one: new, or written before there were hashes."""
    kind: str | None


_NEW: Final = _Seen(0, -1, None)


def _write_nodes(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row], seen: Mapping[str, _Seen]) -> None:
    rows: dict[str, list[Any]] = {end: [end] for row in batch if row.key not in seen for _, end in row.edges}
    former = []
    for row in batch:
        version, edges, kind = seen.get(row.key, _NEW)
        rows[row.key] = [row.key, version, edges, labels_of(row.kind), row.properties]
        if kind != row.kind and labels_of(kind):
            former.append({"key": row.key, "labels": labels_of(kind)})
    written = tx.run(cypher(_WRITE, label), rows=[rows[key] for key in sorted(rows)]).single(strict=True)["written"]
    if written != len(batch):
        raise _OvertakenError
    _each(tx, cypher(_UNLABEL, label), "rows", former)


@dataclass(frozen=True, slots=True)
class _Edges:
    """What to do so that a batch's nodes own the edges they state."""

    stale: list[str] = field(default_factory=list)
    """Ids of the edges to cut."""
    changed: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """Ids of the edges that get other properties, and those."""
    missing: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = field(default_factory=dict)
    """Kind, target and properties of the edges to create, by their owner."""
    ends: set[str] = field(default_factory=set)
    """Keys of the targets of edges that come or go and have not been locked."""


def _difference(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row], owners: Sequence[str]) -> _Edges:
    """Compare the edges stated by the batch with those that ``owners``, its nodes that are not new, own."""
    stated = {row.key: dict(row.edges) for row in batch}
    edges = _Edges()
    for key, id_, kind, target, held in _list(tx, cypher(_OWNED, label), owners) if owners else ():
        properties = stated[key].pop((kind, target), None)
        if properties is None:
            edges.stale.append(id_)
            edges.ends.add(target)
        elif not same(properties, held):
            edges.changed.append((id_, properties))
    edges.ends.update(target for owner in owners for _, target in stated[owner])
    for key, missing in stated.items():
        edges.missing[key] = [(kind, target, properties) for (kind, target), properties in missing.items()]
    return edges


def _each(tx: neo4j.ManagedTransaction, statement: str, name: str, items: Sequence[Any]) -> None:
    if items:
        tx.run(statement, {name: items}).consume()


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    edges = 0
    for row in rows:
        if batch and (len(batch) == ROWS_MAX or edges + len(row.edges) > EDGES_MAX):
            yield batch
            batch, edges = [], 0
        batch.append(row)
        edges += len(row.edges)
    if batch:
        yield batch


def _rows(changes: Sequence[Change], refused: dict[str, str]) -> Iterator[Row]:
    """The changes, greatest version per key, in the order of their keys; what cannot be sent is refused."""
    winners = newest(changes)
    for key in sorted(winners):
        try:
            yield row_of(winners[key])
        except (TypeError, ValueError) as error:  # orjson: a lone surrogate, an integer beyond 64 bits, a foreign type
            refused[key] = f"not JSON: {error}"


def _stored(row: neo4j.Record) -> Stored:
    properties = row["properties"]
    try:
        digested = digest(rebuilt(properties, row["edges"]))
    except (TypeError, KeyError, ValueError):  # someone else's hand: no record has such values, so none is equal
        digested = b""
    return Stored(properties["_key"], properties.get("_stream", ""), properties.get("_version", 0), digested)
