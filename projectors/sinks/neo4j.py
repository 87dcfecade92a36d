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

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, ClassVar, Final, Literal

import neo4j

from outbox.errors import RecordsRefused, StoreError, StoreUnavailable
from projectors.marks import Sum
from projectors.record import Change, Stored, digest, newest
from projectors.sinks.neo4j_form import Row, rebuilt, row_of
from projectors.sinks.neo4j_session import (
    Connection,
    TooLarge,
    cypher,
    label_of,
    not_prepared,
    once_if_too_large,
    parse,
)
from projectors.sinks.neo4j_write import again_if_overtaken, write

ROWS_MAX: Final = 2_000
"""Nodes written in one transaction: as many as a projector hands over at once. Each commit waits for the disk, and an
end in the same transaction needs no stub; more would only hold locks longer."""
EDGES_MAX: Final = 10_000
"""Edges written in one transaction, if no single node owns more."""
CHARACTERS_MAX: Final = 10_000_000
"""Written in one transaction: Neo4j keeps it in memory, each character several times."""
LARGE_CHARACTERS: Final = 10_000_000
"""A node of less that does not fit into the server's memory for transactions is not to blame for it."""
PAGE_COUNT: Final = 250
"""Nodes a scan holds in memory."""
DROP_ROWS: Final = (1_000, 30, 1)
"""Removed in one transaction; fewer if so many do not fit into the server's memory."""
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
_SWITCH: Final = """
MATCH (:OutboxGeneration {label: $label})
MATCH (g:OutboxGeneration {projection: $projection})
SET g.serving = (g.label = $label)
RETURN g.label AS label
"""
_EMPTY: Final = "MATCH (n:LABEL) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF $rows ROWS"
_DROP: Final = (
    "MATCH (g:OutboxGeneration {label: $label}) DELETE g",
    _EMPTY,
    "DROP INDEX `NAME: name` IF EXISTS",
    "DROP CONSTRAINT LABEL IF EXISTS",
    _EMPTY,  # what was committed since by those who had read the mark before it went: the constraint waits for them
)
_PAGE: Final = """
MATCH (n:LABEL) WHERE n._key >= $after WITH n ORDER BY n._key LIMIT $limit
RETURN n._key AS key, CASE WHEN n._live THEN properties(n) END AS properties, COLLECT {
    MATCH (n)-[r]->(m) WHERE n._live AND $label IN labels(m) RETURN [type(r), m._key, properties(r)]
} AS edges
"""
_SUMS: Final = """
MATCH (n:LABEL) WHERE n._live
WITH CASE WHEN n._mark IS NULL THEN -1 ELSE coalesce(n._slice, -1) END AS slice, n._mark AS mark
RETURN slice, count(*) AS count, sum(CASE WHEN slice >= 0 THEN mark ELSE 0 END) AS total
"""
_KEYS_OF_SLICES: Final = "MATCH (n:LABEL) WHERE n._live AND n._slice IN $slices RETURN n._key AS key"
# Told to seek, and no label of the ends, for the reasons given in neo4j_write.
_THESE: Final = """
UNWIND $given[0] AS key MATCH (n:LABEL {_key: key}) USING INDEX SEEK n:LABEL(_key) WHERE n._live
RETURN n._key AS key, properties(n) AS properties, COLLECT {
    MATCH (n)-[r]->(m) WHERE $label IN labels(m) RETURN [type(r), m._key, properties(r)]
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
        """Make the generation's constraint, name index and mark, and wait for the index.

        For this one alone: to wait for all of them fails if another generation is made or dropped meanwhile.
        """
        label = label_of(self._projection, generation)
        with self._connection.session(f"prepare {label}") as session:
            for statement in _PREPARE:
                session.run(cypher(statement, label)).consume()
            waiting = {"name": f"{label}: name", "seconds": ceil(self._connection.settings.timeout_s)}
            session.run("CALL db.awaitIndex($name, $seconds)", waiting).consume()
            session.run(_MARK, label=label, projection=self._projection, generation=generation).consume()

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        """Write the changes in transactions of bounded size; see :mod:`projectors.sinks.neo4j_write` for the guard."""
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
        found = False
        for row in rows:
            found = True
            yield _stored(row)
        if not found:
            self._connection.check_prepared(label)

    def sums(self, generation: str) -> dict[int, Sum]:
        """Added up by Neo4j."""
        label = label_of(self._projection, generation)
        rows = self._read(cypher(_SUMS, label))
        if not rows:
            self._connection.check_prepared(label)
        return {row["slice"]: Sum(row["count"], row["total"]) for row in rows}

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        """Their keys first, in one go over the nodes: 100 bytes each of what is then read page by page."""
        label = label_of(self._projection, generation)
        keys = [row["key"] for row in self._read(cypher(_KEYS_OF_SLICES, label), slices=sorted(slices))]
        return self.scan(generation, keys)

    def switch(self, generation: str) -> None:
        """Neo4j's Community edition has no aliases: mark the generation as the one that serves."""
        label = label_of(self._projection, generation)
        with self._connection.session(f"switch to {label}") as session:
            if not list(session.run(_SWITCH, label=label, projection=self._projection)):
                raise not_prepared(label)

    def drop(self, generation: str) -> None:
        """Unmark the generation, so that late writers stop, then remove its nodes and indexes."""
        label = label_of(self._projection, generation)
        for rows in DROP_ROWS:
            try:
                with self._connection.session(f"drop {label}", DROP_WITHIN_S) as session:
                    for statement in _DROP:
                        session.run(cypher(statement, label), label=label, rows=rows).consume()
                return
            except TooLarge:
                if rows == DROP_ROWS[-1]:
                    raise

    def _apply(self, label: str, batch: Sequence[Row], refused: dict[str, str]) -> None:
        """One transaction. A batch that is refused, or too large, is halved until the culprit stands alone."""
        bounded = neo4j.unit_of_work(timeout=self._connection.settings.timeout_s)
        try:
            with self._connection.session("apply") as session:
                again_if_overtaken(lambda: session.execute_write(bounded(once_if_too_large(write)), label, batch))
        except StoreError as error:
            passes = isinstance(error, StoreUnavailable)
            if isinstance(error, TooLarge):
                passes = len(batch) == 1 and batch[0].characters() < LARGE_CHARACTERS
            if passes:
                raise
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
            for row in self._read(cypher(_PAGE, label), label=label, after=previous or "", limit=PAGE_COUNT):
                count, after = count + 1, row["key"]
                if row["key"] != previous and row["properties"] is not None:
                    yield row
            if count < PAGE_COUNT:
                return

    def _these(self, label: str, keys: Sequence[str]) -> Iterator[neo4j.Record]:
        for start in range(0, len(keys), PAGE_COUNT):
            yield from self._read(cypher(_THESE, label), label=label, given=[keys[start : start + PAGE_COUNT]])

    def _read(self, statement: str, **parameters: Any) -> list[neo4j.Record]:
        with self._connection.session("scan") as session:
            return list(session.run(statement, parameters))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    edges = characters = 0
    for row in rows:
        is_full = len(batch) == ROWS_MAX or edges + len(row.edges) > EDGES_MAX
        length = row.characters()
        if batch and (is_full or characters + length > CHARACTERS_MAX):
            yield batch
            batch, edges, characters = [], 0, 0
        batch.append(row)
        edges += len(row.edges)
        characters += length
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
