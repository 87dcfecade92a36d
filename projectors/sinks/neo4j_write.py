"""A batch of nodes and edges into Neo4j in one transaction: what is read, locked and compared, in which order."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import neo4j

from outbox.errors import StoreUnavailable
from projectors.sinks.neo4j_form import Row, labels_of, same
from projectors.sinks.neo4j_session import cypher, not_prepared

OVERTAKEN_MAX: Final = 10
"""Each time another writer got on, so there is no livelock; more means two processes own the same streams."""

# A statement is planned once, often while there are few nodes; then Neo4j may choose to go through all of them for each
# row. So it is told to seek, and the label of an edge's end, which would be one more place to begin at, is compared as
# text.
# Answers come as one list: a message a row costs the driver more than the rest of the transaction.
# What is given comes as a list of lists: with a list by itself Neo4j plans a statement anew (20 to 50 ms) for every
# power of ten of its length.
_SEEN: Final = """
MATCH (g:OutboxGeneration {label: $label})
OPTIONAL MATCH (n:LABEL) USING INDEX SEEK n:LABEL(_key) WHERE n._key IN $given[0]
RETURN g.label, collect([n._key, coalesce(n._version, 0), coalesce(n._edges, -1), n._kind]) AS found
"""
_OWNED: Final = """
UNWIND $given[0] AS key MATCH (n:LABEL {_key: key}) USING INDEX SEEK n:LABEL(_key)
MATCH (n)-[r]->(m) WHERE $label IN labels(m)
RETURN collect([key, elementId(r), type(r), m._key, properties(r)]) AS owned
"""
# Rows and edges are lists: maps would send every name with every row, and packing is half of what a write costs.
# Removing a property that is not there, or setting it to null, writes nothing, but takes the node's write lock before
# anything is read.
_MAKE: Final = """
UNWIND $given[0] AS row
MERGE (n:LABEL {_key: row[0]})
ON CREATE SET n:Outbox, n:$(coalesce(row[1], [])), n = coalesce(row[2], {_key: row[0], _live: false})
ON MATCH SET n._lock = row[3]
WITH collect(n) AS nodes, collect(CASE WHEN n._lock THEN n._key END) AS found
CALL (nodes) {
    UNWIND $given[1] AS edge
    WITH nodes[edge[0]] AS a, nodes[edge[1]] AS b, edge
    CREATE (a)-[r:$(edge[2])]->(b) SET r = edge[3]
}
RETURN found
"""
_WRITE: Final = """
UNWIND $given[0] AS row
MATCH (n:LABEL {_key: row[0]}) USING INDEX SEEK n:LABEL(_key)
REMOVE n._lock
WITH n, row WHERE coalesce(n._version, 0) = row[1] AND coalesce(n._edges, -1) = row[2]
SET n = row[4], n:$(row[3])
RETURN count(*) AS written
"""
_UNLABEL: Final = """
UNWIND $given[0] AS row MATCH (n:LABEL {_key: row.key}) USING INDEX SEEK n:LABEL(_key)
REMOVE n:$(row.labels)
"""
_CUT: Final = "UNWIND $given[0] AS id MATCH ()-[r]->() WHERE elementId(r) = id DELETE r"
_CHANGE: Final = "UNWIND $given[0] AS edge MATCH ()-[r]->() WHERE elementId(r) = edge[0] SET r = edge[1]"


class _OvertakenError(Exception):
    """A node was written by someone else between being read and being locked."""


def again_if_overtaken(attempt: Callable[[], None]) -> None:
    """Make the attempt until nobody has got in between. Raises :class:`~outbox.errors.StoreUnavailable`."""
    for _ in range(OVERTAKEN_MAX):
        try:
            return attempt()
        except _OvertakenError:
            continue
    raise StoreUnavailable(f"neo4j: apply: overtaken {OVERTAKEN_MAX} times by other writers of the same nodes")


def write(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row]) -> None:
    """Apply a batch in one transaction; a crash anywhere leaves nothing of it.

    1. Read versions and hashes of edges, without locks, and leave out what is overtaken: versions only rise, so it
       stays so.
    2. Make the nodes that are not there and, with their edges, those ends that are not. What is there, of the batch
       and of the ends of edges that come or go, is locked in the order of all their keys, so that concurrent batches
       wait for each other instead of deadlocking. Where no edge comes or goes, 3 does that.
    3. Lock and write the nodes that are there, each if its version and hash are still those read in 1; if one is not,
       roll back and start again. What somebody else has made since 1 is there as well.
    4. Read the edges owned so far by nodes that get others, or are repaired. This must come after the locks:
       without them, Neo4j shows a commit of someone else in parts, the new version already and the old edges still
       (2 reads them without, only to know what to lock).
    5. Join, cut and change.
    """
    seen = _seen(tx, label, batch)
    batch = [row for row in batch if row.beats > seen.get(row.key, _STUB).version]
    new = [row for row in batch if not seen.get(row.key, _STUB).version]
    owners = [row for row in batch if (was := seen.get(row.key, _STUB)).version and row.differs(was.edges)]
    if new or owners:
        made = {row.key: [row.key, labels_of(row.kind), row.properties, True] for row in new if row.key not in seen}
        others = {row.key for row in batch if row.key in seen}
        if owners:
            others.update(target for row in owners for _, target in row.edges)
            others.update(target for *_, target, _ in _owned(tx, label, owners))
        found = _make(tx, label, made, others, [(row.key, *edge, row.edges[edge]) for row in new for edge in row.edges])
        batch = [row for row in batch if row.key in found or row.key not in made]
    if batch:
        _write_nodes(tx, label, batch, seen)
    if owners:
        _write_edges(tx, label, owners)


class _Seen(NamedTuple):
    """What a node was when it was first looked at."""

    version: int
    edges: int
    """Their hash; -1, which no edges have, of a node without one: a stub, or written before there were hashes."""
    kind: str | None


_STUB: Final = _Seen(0, -1, None)


def _seen(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row]) -> Mapping[str, _Seen]:
    found = tx.run(cypher(_SEEN, label), label=label, given=[[row.key for row in batch]]).single()
    if found is None:
        raise not_prepared(label)
    return {key: _Seen(*rest) for key, *rest in found["found"]}


def _make(
    tx: neo4j.ManagedTransaction,
    label: str,
    made: Mapping[str, list[Any]],
    others: Iterable[str],
    edges: Sequence[tuple[str, str, str, Mapping[str, Any]]],
) -> Container[str]:
    """Make nodes, lock others, which become stubs if they are not there, and make edges: owner, kind, target and
    properties. Gives the keys of those of ``made`` that were there: they are only locked."""
    rows: dict[str, list[Any]] = {key: [key] for key in others}
    rows.update((target, [target]) for _, _, target, _ in edges)
    rows.update(made)
    keys = sorted(rows)
    at = {key: n for n, key in enumerate(keys)}
    joins = [[at[owner], at[target], kind, properties] for owner, kind, target, properties in edges]
    found = tx.run(cypher(_MAKE, label), given=[[rows[key] for key in keys], joins]).single(strict=True)
    return frozenset(found["found"])


def _write_nodes(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row], seen: Mapping[str, _Seen]) -> None:
    rows, former = [], []
    for row in batch:
        version, edges, kind = seen.get(row.key, _STUB)
        rows.append([row.key, version, edges, labels_of(row.kind), row.properties])
        if kind != row.kind and labels_of(kind):
            former.append({"key": row.key, "labels": labels_of(kind)})
    written = tx.run(cypher(_WRITE, label), given=[rows]).single(strict=True)["written"]
    if written != len(batch):
        raise _OvertakenError
    _each(tx, cypher(_UNLABEL, label), former)


def _owned(tx: neo4j.ManagedTransaction, label: str, owners: Sequence[Row]) -> list[Any]:
    """Owner, id, kind, target and properties of each edge."""
    found = tx.run(cypher(_OWNED, label), label=label, given=[[row.key for row in owners]]).single(strict=True)
    owned: list[Any] = found["owned"]
    return owned


def _write_edges(tx: neo4j.ManagedTransaction, label: str, owners: Sequence[Row]) -> None:
    """Compare the edges stated by nodes that were there with those that they own, and make them equal."""
    stated = {row.key: dict(row.edges) for row in owners}
    stale, changed = [], []
    for key, id_, kind, target, held in _owned(tx, label, owners):
        properties = stated[key].pop((kind, target), None)
        if properties is None:
            stale.append(id_)
        elif not same(properties, held):
            changed.append((id_, properties))
    missing = [(key, *edge, properties) for key, edges in stated.items() for edge, properties in edges.items()]
    if missing:
        _make(tx, label, {}, {key for key, *_ in missing}, missing)
    _each(tx, _CUT, stale)
    _each(tx, _CHANGE, changed)


def _each(tx: neo4j.ManagedTransaction, statement: str, items: Sequence[Any]) -> None:
    if items:
        tx.run(statement, given=[items]).consume()
