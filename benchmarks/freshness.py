"""How long after COMMIT is a file visible in all three real stores? ``python -m benchmarks.freshness``

Files are committed one by one at a fixed rate; each is then waited for by asking the stores themselves (get by
key in Chroma, Neo4j and Elasticsearch, each from a process of its own), not our own checkpoints. Relay and
projectors are processes too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql

from benchmarks.watching import Place, Watcher
from deploy.local.resolve import resolve
from outbox.database import connect
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.migrate import migrate
from outbox.settings import load
from projectors import ledger
from projectors.sinks.chroma_client import collection_name
from projectors.sinks.elasticsearch import index_name
from projectors.sinks.neo4j_session import label_of
from projectors.wiring import ReadSide, open_read_side

STORES = {"vectors": "chroma", "graph": "neo4j", "documents": "elasticsearch"}
SERVICES = ("postgres", "kafka", "chroma", "neo4j", "elasticsearch")
RESULTS = Path(__file__).parent / "results"
VISIBLE_WITHIN_S = 60.0
WARM = 100


def main() -> None:
    """Run and print the figures; write them to results/freshness.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="commits per second")
    parser.add_argument("--commits", type=int, default=400)
    options = parser.parse_args()
    with resolve(SERVICES) as servers, tempfile.TemporaryDirectory() as folder:
        settings = _settings(servers.address) | {"OUTBOX_DATABASE__DSN": _database(servers.address("postgres"))}
        os.environ.update(settings)
        with connect(settings["OUTBOX_DATABASE__DSN"]) as connection:
            migrate(connection)
        processes = [_process(folder, "relay"), *(_process(folder, "project", name) for name in _names(settings))]
        try:
            with open_read_side(load()) as side:
                latencies = measure(side, options.rate, options.commits)
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)
    report(latencies, options.rate)


def measure(side: ReadSide, rate: float, commits: int) -> dict[str, list[float]]:
    """Seconds from COMMIT to visible, by store and in ``all``."""
    mark = uuid.uuid4().hex
    keys = [f"python-{mark}.n{i}" for i in range(commits)]
    with side.write.connection() as connection:
        _until(lambda: all(ledger.serving(connection, n) for n in side.projecting), 120)
        _warm(side, connection)
        watchers = {
            name: Watcher(_place(side, name, ledger.serving(connection, name)), keys) for name in side.projecting
        }
        committed: dict[str, float] = {}
        started = time.monotonic()
        for i, key in enumerate(keys):
            time.sleep(max(0.0, started + i / rate - time.monotonic()))
            append(connection, key, _event(i), expected="none", registry=side.write.registry)
            committed[key] = time.monotonic()
        print(f"{commits / (time.monotonic() - started):.1f} commits/s, asked for {rate:g}")
    seen = {side.plan(name).store: watcher.seen(VISIBLE_WITHIN_S) for name, watcher in watchers.items()}
    latencies = {store: [at[key] - committed[key] for key in keys] for store, at in seen.items()}
    return latencies | {"all": [max(latencies[s][i] for s in seen) for i in range(commits)]}


def _place(side: ReadSide, name: str, generation: str | None) -> Place:
    store = side.plan(name).store
    held = {
        "chroma": collection_name(name, generation or "", "records"),
        "neo4j": label_of(name, generation or ""),
        "elasticsearch": index_name(name, generation or ""),
    }
    return Place(store, str(side.store_settings(store)["url"]), held[store])


def _warm(side: ReadSide, connection: Any) -> None:
    from projectors.query.search import Search

    with Search(side) as search:
        for i in range(WARM):
            done = append(connection, f"python-warm.n{i}", _event(i), expected="any", registry=side.write.registry)
            search.wait_for(done.token, timeout_s=60)


def report(latencies: dict[str, list[float]], rate: float) -> None:
    """Print and write the quantiles in milliseconds."""
    rows = {}
    for name, seconds in latencies.items():
        cuts = statistics.quantiles(seconds, n=100)
        rows[name] = {"n": len(seconds), "p50_ms": round(cuts[49] * 1e3, 1), "p99_ms": round(cuts[98] * 1e3, 1)}
        print(f"{name:<12} p50 {rows[name]['p50_ms']:>8} ms   p99 {rows[name]['p99_ms']:>8} ms   n {len(seconds)}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "freshness.json").write_text(json.dumps({"commits_per_s": rate, **rows}, indent=2) + "\n", "utf-8")


def _event(i: int) -> NewEvent:
    text = f"Function number {i} of a benchmark. " * 8
    data = {"kind": "module", "name": f"bench{i}", "text": text, "properties": {"line": i}}
    return NewEvent("entity.upserted", data)


def _settings(address: Callable[[str], str]) -> dict[str, str]:
    mark = uuid.uuid4().hex[:8]
    projectors = {f"{kind}_{mark}": {"projection": kind, "store": store} for kind, store in STORES.items()}
    return {
        "OUTBOX_MODE": "servers",
        "OUTBOX_PREFIX": f"bench.{mark}",
        "OUTBOX_KAFKA__BOOTSTRAP": address("kafka"),
        "OUTBOX_STORES__CHROMA__URL": address("chroma"),
        "OUTBOX_STORES__NEO4J__URL": address("neo4j"),
        "OUTBOX_STORES__ELASTICSEARCH__URL": address("elasticsearch"),
        "OUTBOX_PROJECTORS": json.dumps(projectors),
    }


def _database(server: str) -> str:
    """A database of this run's own on the server; its DSN."""
    name = f"outbox_freshness_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return conninfo.make_conninfo(server, dbname=name)


def _names(settings: dict[str, str]) -> list[str]:
    return list(json.loads(settings["OUTBOX_PROJECTORS"]))


def _process(folder: str, *arguments: str) -> subprocess.Popen[bytes]:
    log = (Path(folder) / f"{'-'.join(arguments)}.log").open("wb")
    return subprocess.Popen([str(Path(sys.executable).with_name("outbox")), *arguments], stdout=log, stderr=log)


def _until(condition: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the projectors did not begin in time")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
