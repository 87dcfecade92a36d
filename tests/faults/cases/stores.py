"""Stores that lie, are slow, crash, are wiped, or come back with what they held yesterday."""

from __future__ import annotations

from urllib.parse import urlsplit

import chromadb
from elasticsearch import Elasticsearch

from tests.faults.faults import fault
from tests.faults.liar import Liar, Mode
from tests.faults.run import Run
from tests.faults.stores import STORES
from tests.faults.until import until

LIES = {
    "answers 429 after it applied": ("status", 429),
    "answers 503 after it applied": ("status", 503),
    "does not answer after it applied": ("silence", 0),
}


def _lie(run: Run, kind: str, mode: Mode, status: int) -> None:
    parts = urlsplit(run.servers.address(STORES[kind]))
    liar = Liar((parts.hostname or "", parts.port or 0), kind)
    run.stack.callback(liar.close)
    run.redirect(f"project>{kind}", liar.port)
    run.begin()
    run.appended(20)
    liar.set(mode, status)
    count = run.source.randrange(1, 4) if mode != "silence" else 1
    until(lambda: liar.lies() >= count, f"{count} lies", 60)
    liar.set("pass")
    run.over()
    run.appended(20)


for _kind, _spoken in (("documents", "Elasticsearch"), ("vectors", "Chroma")):
    for _name, (_mode, _status) in LIES.items():
        fault(f"{_spoken}: {_name}", kinds=(_kind,), bound_s=60, cheap=False)(
            lambda run, given=(_kind, _mode, _status): _lie(run, *given)
        )


@fault("Elasticsearch: a bulk request fails in part", kinds=("documents",), bound_s=60, cheap=False)
def _part(run: Run) -> None:
    _lie(run, "documents", "part", 0)


@fault("Elasticsearch: slow", kinds=("documents",), bound_s=60, cheap=False)
def _slow(run: Run) -> None:
    proxy = run.through("project>documents")
    run.begin()
    proxy.set("delay", run.source.uniform(0.3, 1.2))
    run.appended(run.source.randrange(100, 300))
    proxy.set("pass")
    run.over()


@fault("Elasticsearch: killed", kinds=("documents",), alone=True, bound_s=90, cheap=False)
def _elasticsearch_killed(run: Run) -> None:
    _crash(run, "elasticsearch")


@fault("Chroma: killed", kinds=("vectors",), alone=True, bound_s=90, cheap=False)
def _chroma_killed(run: Run) -> None:
    _crash(run, "chroma")


@fault("Neo4j: killed", kinds=("nodes",), alone=True, bound_s=180, cheap=False)
def _neo4j_killed(run: Run) -> None:
    """On two busy cores it takes half a minute to start, and its first transactions time out until it is warm."""
    _crash(run, "neo4j")


def _crash(run: Run, name: str) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 150))
    server = run.servers.service(name)
    server.kill()
    run.appended(30)
    server.restart()
    run.over()


def _table(run: Run) -> str:
    place = run.place("rows")
    return f'outbox_rows."{place.projector}:{place.serving}"'


@fault("store: wiped, then rebuilt")
def _wiped(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(40, 150))
    with run.connection() as connection:
        connection.execute(f"TRUNCATE {_table(run)}")
    run.must("rebuild", run.projector("rows"))
    run.over()


@fault("store: put back to an older copy, then repaired", ages=False)
def _older(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 60))
    with run.connection() as connection:
        connection.execute(f"CREATE TABLE audit.copy AS SELECT * FROM {_table(run)}")
    run.appended(run.source.randrange(40, 150))
    run.stop_writers()
    run.caught_up()
    with run.connection() as connection, connection.transaction():
        connection.execute(f"TRUNCATE {_table(run)}")
        connection.execute(f"INSERT INTO {_table(run)} SELECT * FROM audit.copy")
    run.must("verify", run.projector("rows"), "--repair")
    run.over()
    run.write(1)
    run.appended(20)


@fault("Elasticsearch: index deleted, then rebuilt", kinds=("documents",), bound_s=60, cheap=False)
def _index_deleted(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(40, 150))
    with Elasticsearch(run.servers.address("elasticsearch")) as client:
        client.indices.delete(index=",".join(client.indices.get_alias(name=run.projector("documents"))))
    run.must("rebuild", run.projector("documents"))
    run.over()


@fault("Chroma: collections deleted, then rebuilt", kinds=("vectors",), bound_s=60, cheap=False)
def _collections_deleted(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(40, 150))
    place = run.place("vectors")
    host, _, port = place.address.removeprefix("http://").rpartition(":")
    client = chromadb.HttpClient(host=host, port=int(port), settings=chromadb.Settings(anonymized_telemetry=False))
    for part in ("records", "tombstones"):
        client.delete_collection(f"{place.projector}.{place.serving}.{part}")
    run.must("rebuild", place.projector)
    run.over()
