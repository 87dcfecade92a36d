"""Ladybug's COPY FROM a file of comma-separated values for what is new; UNWIND, MATCH and SET for what is there.

An update writes all edges anew: deleted in one statement and copied in, which is the fastest there is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ladybug
import orjson

from benchmarks.natives import Native, parts
from projectors.record import Node
from projectors.sinks.ladybug_graph import BUFFER_MIB, CHECKPOINT_BYTES, THREADS

_NODES: Final = "CREATE NODE TABLE node(key STRING PRIMARY KEY, kind STRING, name STRING, properties STRING)"
_EDGES: Final = "CREATE REL TABLE edge(FROM node TO node, kind STRING, properties STRING)"
_COPY: Final = """COPY {table} FROM '{path}' (HEADER=false, QUOTE='"', ESCAPE='"', PARALLEL=false)"""
_SET: Final = """
UNWIND $rows AS r MATCH (a:node {key: r.id}) SET a.kind = r.kind, a.name = r.name, a.properties = r.properties"""
_CUT: Final = "MATCH (:node)-[e:edge]->(:node) DELETE e"
_COUNT: Final = "MATCH (a:node) RETURN count(*)"


class LadybugNative:
    def __init__(self, connection: Any, folder: Path) -> None:
        self._connection = connection
        self._folder = folder

    def prepare(self) -> None:
        for statement in (_NODES, _EDGES):
            self._run(statement)

    def load(self, records: Sequence[Node], batch: int) -> None:
        del batch  # a COPY is one
        self._copy("node", ([r.key, r.kind, r.name, _json(r.properties)] for r in records))
        self._join(records)

    def update(self, records: Sequence[Node], batch: int) -> None:
        for part in parts(records, batch):
            rows = [{"id": r.key, "kind": r.kind, "name": r.name, "properties": _json(r.properties)} for r in part]
            self._run(_SET, {"rows": rows})
        self._run(_CUT)
        self._join(records)

    def count(self) -> int:
        return int(self._run(_COUNT)[0][0])

    def _join(self, records: Sequence[Node]) -> None:
        self._copy("edge", ([r.key, e.target, e.kind, _json(e.properties)] for r in records for e in r.edges))

    def _copy(self, table: str, rows: Iterable[Sequence[str]]) -> None:
        path = self._folder / f"{table}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
        self._run(_COPY.format(table=table, path=path))

    def _run(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[list[Any]]:
        result = self._connection.execute(statement, dict(parameters or {}))
        found: list[list[Any]] = result.get_all()
        result.close()
        return found


def _json(properties: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(properties)).decode()


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    """In a database of its own, with the sink's bounds of memory and threads."""
    folder = Path(settings["path"]) / name
    folder.mkdir(parents=True)
    database = ladybug.Database(
        str(folder / "native.lbug"),
        buffer_pool_size=BUFFER_MIB * 1024 * 1024,
        max_num_threads=THREADS,
        checkpoint_threshold=CHECKPOINT_BYTES,
    )
    connection = ladybug.Connection(database, num_threads=THREADS)
    native = LadybugNative(connection, folder)
    try:
        native.prepare()
        yield native
    finally:
        connection.close()
        database.close()
