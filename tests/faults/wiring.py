"""What a run's processes are told: its database, broker and stores, and the proxies on the edges between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.faults import broker, stores
from tests.faults.plan import Plan
from tests.faults.proxy import Proxy
from tests.faults.servers import Servers
from tests.faults.stores import Place

KAFKA_PARTITIONS = 3
STORE_TIMEOUT_S = 10
"""A third of the default, so that what never answers is found within a run."""


@dataclass
class Wiring:
    """Where everything of one run is, and by which way each process is to go there."""

    plan: Plan
    servers: Servers
    seed: int
    folder: Path
    dsn: str
    stack: ExitStack
    mutant: str | None = None
    edges: dict[str, Proxy] = field(default_factory=dict)
    rows_dsn: str = ""
    """The database that rows are kept in."""

    def __post_init__(self) -> None:
        self.rows_dsn = self.rows_dsn or self.dsn

    @property
    def mark(self) -> str:
        """A name no other run has."""
        return urlsplit(self.rows_dsn).path.lstrip("/").removeprefix("faults_").replace("_", "x")

    def settings(self, who: str) -> dict[str, str]:
        """The environment of ``who`` (relay or project), with the proxies put on its edges."""
        names = {kind: self.projector(kind) for kind in self.plan.kinds}
        given = {
            "OUTBOX_MODE": "embedded" if self.plan.broker == "local" else "servers",
            "OUTBOX_DATA_DIR": str(self.folder / "data"),
            "OUTBOX_PREFIX": f"f{self.mark}",
            "OUTBOX_RELAY__ENGINE": self.plan.engine,
            "OUTBOX_RELAY__DELIVERY": self.plan.delivery,
            "OUTBOX_DATABASE__DSN": self._dsn_of(who),
            "OUTBOX_STORES": json.dumps({stores.STORES[kind]: self._store(kind) for kind in self.plan.kinds}),
            "OUTBOX_PROJECTORS": json.dumps(
                {
                    name: {
                        "projection": f"tests.faults.projection:{stores.FORMS[kind]}",
                        "store": stores.STORES[kind],
                        "batch": 100,
                    }
                    for kind, name in names.items()
                }
            ),
        }
        return given | (self._kafka(who) if self.plan.broker == "kafka" else {})

    def projector(self, kind: str) -> str:
        """The name of the projector that keeps records of this kind."""
        return f"{kind}{self.mark}"

    def through(self, edge: str) -> Proxy:
        """Put a proxy on an edge before its processes start: ``relay>postgres``, ``project>kafka``, ``write>postgres``,
        ``project>rows`` and the like."""
        who, _, what = edge.partition(">")
        if what == "kafka":
            proxy = self.servers.edge(who.upper())
        else:
            target = self.servers.address("postgres" if what in ("postgres", "rows") else stores.STORES[what])
            parts = urlsplit(target)
            proxy = Proxy((parts.hostname or "", parts.port or 0), edge)
            self.stack.callback(proxy.close)
        self.edges[edge] = proxy
        return proxy

    def unproxied(self, edge: str) -> None:
        """What starts from now on goes straight."""
        self.edges.pop(edge)

    def redirect(self, edge: str, port: int) -> None:
        """Lead an edge to a port of the test's own."""
        self.edges[edge] = _Port(port)  # type: ignore[assignment]

    def move_log(self, dsn: str) -> None:
        """Let the log be in another database from the start on; rows are kept in the one it would have been in."""
        self.dsn = dsn

    def _kafka(self, who: str) -> dict[str, str]:
        edge = self.edges.get(f"{who}>kafka")
        bootstrap = f"127.0.0.1:{edge.port}" if edge else self.servers.address("kafka")
        return {
            "OUTBOX_KAFKA__BOOTSTRAP": bootstrap,
            "OUTBOX_KAFKA__PARTITIONS": str(KAFKA_PARTITIONS),
            "OUTBOX_KAFKA__TIMEOUT_S": "5",
        }

    def _dsn_of(self, who: str) -> str:
        return self._via(f"{who}>postgres", self.dsn)

    def _store(self, kind: str) -> dict[str, Any]:
        if kind == "rows":
            return {"dsn": self._via("project>rows", self.rows_dsn), "timeout_s": STORE_TIMEOUT_S}
        return {
            "url": self._via(f"project>{kind}", self.servers.address(stores.STORES[kind])),
            "timeout_s": STORE_TIMEOUT_S,
        }

    def _via(self, edge: str, address: str) -> str:
        proxy = self.edges.get(edge)
        if proxy is None:
            return address
        parts = urlsplit(address)
        user = f"{parts.username}@" if parts.username else ""
        return parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """The tests' own connection, past every proxy."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def value(self, query: str, *parameters: Any) -> Any:
        """The first column of a query's first row, or None."""
        with self.connection() as connection:
            row = connection.execute(query, parameters).fetchone()
            return row[0] if row else None

    def place(self, kind: str) -> Place:
        name = self.projector(kind)
        serving = self.value(
            "SELECT generation FROM outbox.generation WHERE projector = %s AND state = 'serving'", name
        )
        address = self.rows_dsn if kind == "rows" else self.servers.address(stores.STORES[kind])
        return Place(name, address, serving or "")

    def place_of_broker(self) -> broker.Topic:
        address = self.dsn if self.plan.broker == "local" else self.servers.address("kafka")
        return broker.Topic(self.plan.broker, address, f"f{self.mark}.thing")


@dataclass(frozen=True)
class _Port:
    """Stands where a proxy would: only its port is asked for."""

    port: int
