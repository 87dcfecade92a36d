"""The real servers, started once for all runs, and what a run gets of them: a database, a topic prefix, proxies."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from deploy.local.local import Local
from deploy.local.service import Service
from outbox.database import connected
from outbox.log.migrate import migrate
from tests.faults.proxy import HOST, Proxy

SETTINGS = {
    # Processes and servers are killed here, machines are not: what the kernel has is safe.
    "postgres": {"fsync": "off", "max_connections": "300", "max_replication_slots": "50"},
    "kafka": {"log.flush.interval.messages": "10000"},
}
TEMPLATE = "outbox_faults"
EDGES = ("RELAY", "PROJECT")
"""Listeners of Kafka that are advertised at a proxy's port: one edge each."""


class Servers:
    """Started when first asked for."""

    def __init__(self, home: Path) -> None:
        self._settings = {name: dict(given) for name, given in SETTINGS.items()}
        self._local = Local(home / "servers", settings=self._settings)
        self._proxies: dict[str, Proxy] = {}
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.home = home

    def service(self, name: str) -> Service:
        """The server, running."""
        with self._lock:
            if name not in self._local.services:
                self._local.start(name)
                if name == "kafka":
                    self._put_proxies_before_kafka()
            return self._local[name]

    def address(self, name: str) -> str:
        return self.service(name).address

    def edge(self, name: str) -> Proxy:
        """The proxy on one of Kafka's edges; its clients are led back to it by Kafka itself."""
        self.service("kafka")
        return self._proxies[name]

    def new_database(self) -> str:
        """DSN of a migrated database with the audit in place."""
        server = self.address("postgres")
        with self._lock, psycopg.connect(server, autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone():
                self._make_template(connection, server)
            name = f"faults_{os.getpid()}_{next(self._numbers)}"
            connection.execute(_create(name, TEMPLATE))
        return _dsn(server, name)

    def drop_database(self, dsn: str) -> None:
        name = urlsplit(dsn).path.lstrip("/")
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            # A slot of the database's holds it; whoever streams from it has ended, but PostgreSQL may not know yet.
            held = "SELECT slot_name FROM pg_replication_slots WHERE database = %s"
            for (slot,) in connection.execute(held, [name]).fetchall():
                _drop_slot(connection, slot)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def revive(self) -> None:
        """After a run: whatever it left dead or frozen runs again."""
        with self._lock:
            for name, service in self._local.services.items():
                if service.alive:
                    service.resume()
                else:
                    self._local.restart(name)
            for proxy in self._proxies.values():
                proxy.set("pass")

    def close(self) -> None:
        self._local.close()
        for proxy in self._proxies.values():
            proxy.close()

    def _make_template(self, connection: psycopg.Connection[tuple[object, ...]], server: str) -> None:
        """Renamed once it is whole: one that was left half made is never taken."""
        unfinished = f"{TEMPLATE}_unfinished"
        prepare(server, unfinished)
        names = map(sql.Identifier, (unfinished, TEMPLATE))
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))

    def _put_proxies_before_kafka(self) -> None:
        """Two more listeners, each advertised at the port of a proxy that leads to it."""
        plain, controller = self._local["kafka"].ports
        ports = _free_ports(len(EDGES))
        self._proxies = {
            edge: Proxy((HOST, port), f"Kafka for {edge}") for edge, port in zip(EDGES, ports, strict=True)
        }
        listen = {"PLAINTEXT": plain, **dict(zip(EDGES, ports, strict=True))}
        told = {"PLAINTEXT": plain, **{edge: proxy.port for edge, proxy in self._proxies.items()}}
        self._settings["kafka"] |= {
            "listeners": ",".join([*_listeners(listen), f"CONTROLLER://{HOST}:{controller}"]),
            "advertised.listeners": ",".join(_listeners(told)),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in [*listen, "CONTROLLER"]),
            "inter.broker.listener.name": "PLAINTEXT",
        }
        self._local.restart("kafka")


def prepare(server: str, name: str) -> str:
    """Make a migrated database with the audit in place; its DSN."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(_create(name, "template0"))
    with connected(_dsn(server, name)) as made:
        migrate(made)
        made.execute(Path(__file__).with_name("audit.sql").read_bytes())
    return _dsn(server, name)


@contextmanager
def running() -> Iterator[Servers]:
    """Servers in a temporary folder, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="outbox-faults-") as folder:
        Path(folder).chmod(0o755)
        servers = Servers(Path(folder))
        try:
            yield servers
        finally:
            servers.close()


def _drop_slot(connection: psycopg.Connection[tuple[object, ...]], slot: str) -> None:
    ended = "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s AND active"
    connection.execute(ended, [slot])
    connection.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [slot]
    )


def _listeners(ports: dict[str, int]) -> list[str]:
    return [f"{name}://{HOST}:{port}" for name, port in ports.items()]


def _free_ports(count: int) -> list[int]:
    from deploy.local.ports import reserve

    reservation = reserve(count)
    try:
        return list(reservation.ports)
    finally:
        reservation.close()


def _create(name: str, template: str) -> sql.Composed:
    text = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"
    return sql.SQL(text).format(sql.Identifier(name), sql.Identifier(template))


def _dsn(server: str, database: str) -> str:
    return urlsplit(server)._replace(path=f"/{database}").geturl()
