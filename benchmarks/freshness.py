"""How long after COMMIT is a file visible in all three real stores? ``python -m benchmarks.freshness``

Files are committed one by one at a fixed rate; each is then waited for by asking the stores themselves (get by
key in Chroma, Neo4j and Elasticsearch), not our own checkpoints. Relay and projectors are processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.local.resolve import resolve
from outbox.database import connect
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.migrate import migrate
from outbox.settings import load
from projectors import ledger
from projectors.wiring import ReadSide, open_read_side

STORES = {"vectors": "chroma", "graph": "neo4j", "documents": "elasticsearch"}
SERVICES = ("postgres", "kafka", "chroma", "neo4j", "elasticsearch")
RESULTS = Path(__file__).parent / "results"
VISIBLE_WITHIN_S = 30.0


def main() -> None:
    """Run and print the figures; write them to results/freshness.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="commits per second")
    parser.add_argument("--commits", type=int, default=400)
    options = parser.parse_args()
    with resolve(SERVICES) as servers, tempfile.TemporaryDirectory() as folder:
        settings = _settings(servers.address)
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
    with side.write.connection() as connection:
        _until(lambda: all(ledger.serving(connection, n) for n in side.projecting), 120)
        _warm(side, connection)
        watchers = {name: _Watcher(side, name) for name in side.projecting}
        committed: list[tuple[str, float]] = []
        started = time.monotonic()
        for i in range(commits):
            time.sleep(max(0.0, started + i / rate - time.monotonic()))
            stream = f"python-bench.{uuid.uuid4().hex}"
            append(connection, stream, _event(i), expected="none", registry=side.write.registry)
            at = time.monotonic()
            committed.append((stream, at))
            for watcher in watchers.values():
                watcher.watch(stream, at)
        for watcher in watchers.values():
            watcher.finish()
    latencies = {name: w.seconds for name, w in watchers.items()}
    seen = {name: w.by_key for name, w in watchers.items()}
    latencies["all"] = [max(seen[n][key] for n in seen) for key, _ in committed]
    return latencies


class _Watcher:
    """Asks one store for the keys not seen yet, over and over."""

    def __init__(self, side: ReadSide, name: str) -> None:
        self.by_key: dict[str, float] = {}
        self._waiting: dict[str, float] = {}
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(side, name))
        self._thread.start()

    @property
    def seconds(self) -> list[float]:
        return list(self.by_key.values())

    def watch(self, key: str, at: float) -> None:
        with self._lock:
            self._waiting[key] = at

    def finish(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self, side: ReadSide, name: str) -> None:
        with side.write.connection() as connection:
            generation = ledger.serving(connection, name) or ""
        probe, close = _probe(side, name, generation)
        deadline = None
        while True:
            with self._lock:
                waiting = dict(self._waiting)
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + VISIBLE_WITHIN_S
                if not waiting:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name}: {len(waiting)} never seen")
            found = probe(list(waiting)) if waiting else set()
            now = time.monotonic()
            with self._lock:
                for key in found:
                    self.by_key[key] = now - self._waiting.pop(key)
            time.sleep(0.001)
        close()


def _probe(side: ReadSide, name: str, generation: str) -> tuple[Callable[[list[str]], set[str]], Callable[[], None]]:
    opened = side.open_sink(name)
    sink = opened.__enter__()
    sink.prepare(generation)
    if side.plan(name).store != "elasticsearch":
        return lambda keys: {
            s.key for s in sink.scan(generation, keys)
        }, lambda: opened.__exit__(None, None, None) and None
    # The sink's scan refreshes the index first; a user's get by id does not need that.
    from elasticsearch import Elasticsearch

    client = Elasticsearch(side.store_settings("elasticsearch")["url"])

    def get(keys: list[str]) -> set[str]:
        answer = client.mget(index=f"{name}-{generation}", ids=keys, source=False)
        return {d["_id"] for d in answer["docs"] if d.get("found")}

    return get, client.close


def _warm(side: ReadSide, connection: Any) -> None:
    from projectors.query.search import Search

    with Search(side) as search:
        for i in range(20):
            done = append(connection, f"python-bench.warm{i}", _event(i), expected="any", registry=side.write.registry)
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
        "OUTBOX_DATABASE__DSN": address("postgres"),
        "OUTBOX_KAFKA__BOOTSTRAP": address("kafka"),
        "OUTBOX_STORES__CHROMA__URL": address("chroma"),
        "OUTBOX_STORES__NEO4J__URL": address("neo4j"),
        "OUTBOX_STORES__ELASTICSEARCH__URL": address("elasticsearch"),
        "OUTBOX_PROJECTORS": json.dumps(projectors),
    }


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
