"""Every network edge cut, delayed, half open and reset, by a proxy of ours that stands on it."""

from __future__ import annotations

import threading

from tests.faults.faults import fault
from tests.faults.run import Run

LOCAL = ("write>postgres", "relay>postgres", "project>postgres", "project>rows")
KAFKA = ("relay>kafka", "project>kafka")
SERVERS = {"documents": "project>documents", "vectors": "project>vectors", "nodes": "project>nodes"}
SPOKEN = {
    "write": "writer",
    "project": "projector",
    "postgres": "PostgreSQL",
    "kafka": "Kafka",
    "rows": "its store",
    "documents": "Elasticsearch",
    "vectors": "Chroma",
    "nodes": "Neo4j",
}
HURTS = ("cut", "delay", "half open", "reset")


def _hurt(run: Run, edge: str, how: str) -> None:
    proxy = run.through(edge)
    run.begin()
    run.appended(run.source.randrange(10, 80))
    for _ in range(run.source.randrange(1, 4)):
        if how == "delay":
            proxy.set("delay", run.source.uniform(0.02, 0.3))
        else:
            proxy.set({"cut": "cut", "half open": "freeze", "reset": "reset"}[how])
        threading.Event().wait(run.source.uniform(0.2, 2.0))
        proxy.set("pass")
        threading.Event().wait(run.source.uniform(0.0, 0.5))
    run.over()
    run.appended(20, 60)


def _register(edge: str, **needs: object) -> None:
    who, _, what = edge.partition(">")
    for how in HURTS:
        name = f"network: {SPOKEN.get(who, who)} to {SPOKEN[what]}, {how}"
        fault(name, bound_s=60, **needs)(lambda run, how=how: _hurt(run, edge, how))


for _edge in LOCAL:
    _register(_edge, cheap=False)
for _edge in KAFKA:
    _register(_edge, broker="kafka", alone=True, cheap=False)
for _kind, _edge in SERVERS.items():
    _register(_edge, kinds=(_kind,), cheap=False)
