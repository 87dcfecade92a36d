"""Debezium 3.3 in Kafka Connect, standalone, as one process that publishes the event log to a topic.

It is given what does it good: its outbox event router on the very rows of ``outbox.event`` (columns it need not read
are left out), values passed on as bytes, lz4, large batches and queues, the heap that Kafka's own scripts give.
Its jars come from Maven Central, once, into the cache of :mod:`deploy.local`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import conninfo

from deploy.local import process
from deploy.local.guard import Guard
from deploy.local.jars import installed
from deploy.local.java import find_java
from deploy.local.ports import HOST, reserve
from deploy.local.process import Launch, Pid
from deploy.local.versions import KAFKA, Jars
from outbox.broker import Broker
from outbox.database import connected

DEBEZIUM: Final = "3.3.1.Final"
JARS: Final = Jars(
    "debezium",
    DEBEZIUM,
    (
        f"org.apache.kafka:connect-runtime:{KAFKA}",
        f"org.apache.kafka:connect-json:{KAFKA}",
        f"io.debezium:debezium-connector-postgres:{DEBEZIUM}",
        "org.slf4j:slf4j-simple:1.7.36",
    ),
)
JVM: Final = ("-Xms256m", "-Xmx2g", "-XX:+UseG1GC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
WITHIN_S: Final = 300
LOOK_S: Final = 0.02
STOP_WITHIN_S: Final = 30
PARTITIONS: Final = 12

WORKER: Final[dict[str, str]] = {
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
    "offset.flush.interval.ms": "500",
    "producer.compression.type": "lz4",
    "producer.batch.size": "1000000",
    "producer.buffer.memory": "134217728",
}
CONNECTOR: Final[dict[str, str]] = {
    "name": "debezium",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "slot.name": "debezium",
    "publication.name": "debezium",
    "publication.autocreate.mode": "filtered",
    "table.include.list": "outbox.event",
    "column.exclude.list": "outbox.event.xid,outbox.event.meta,outbox.event.at",
    "message.prefix.exclude.list": ".*",
    "snapshot.mode": "no_data",
    "tombstones.on.delete": "false",
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "topic.creation.default.replication.factor": "1",
    "topic.creation.default.partitions": str(PARTITIONS),
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.outbox.table.field.event.id": "id",
    "transforms.outbox.table.field.event.key": "stream",
    "transforms.outbox.table.field.event.type": "type",
    "transforms.outbox.table.field.event.payload": "data",
    "transforms.outbox.table.fields.additional.placement": "type:header,version:header,position:header",
    "transforms.outbox.route.by.field": "type",
}


@dataclass(frozen=True)
class Connect:
    """Where Debezium reads, where it writes, the folder it keeps its offsets in, and how long it gathers."""

    dsn: str
    bootstrap: str
    topic: str
    folder: Path
    poll_ms: int
    linger_ms: int

    @contextmanager
    def running(self) -> Iterator[Pid]:
        """The worker, until the block ends. It ends in good order, which notes how far it has published."""
        reservation, guard = reserve(1), Guard()
        pid = process.spawn(self._launch(reservation.ports[0]), self.folder / "connect.log")
        guard.watch(pid)
        try:
            yield pid
        finally:
            process.stop(pid, signal.SIGTERM, STOP_WITHIN_S)
            self._released()
            guard.close()
            reservation.close()

    def published(self, broker: Broker) -> int:
        """Messages in the topic."""
        return sum(broker.ends([self.topic]).values())

    def wait(self, pid: Pid, condition: Callable[[], bool]) -> None:
        """Until it holds. Raises RuntimeError if the worker ends first, or after WITHIN_S."""
        until = time.monotonic() + WITHIN_S
        while not condition():
            if not process.alive(pid) or time.monotonic() > until:
                raise RuntimeError(f"Debezium did not get there: see the end of its log\n{self._log()}")
            time.sleep(LOOK_S)

    def streams(self) -> bool:
        """Whether its slot is being read."""
        with connected(self.dsn) as connection:
            row = connection.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()",
                [CONNECTOR["slot.name"]],
            ).fetchone()
        return row is not None and row[0]

    def _released(self) -> None:
        """A slot in use would keep the database from being dropped, and the next worker from streaming."""
        until = time.monotonic() + STOP_WITHIN_S
        while self.streams() and time.monotonic() < until:
            time.sleep(LOOK_S)

    def _launch(self, port: int) -> Launch:
        given = conninfo.conninfo_to_dict(self.dsn)
        worker = WORKER | {
            "bootstrap.servers": self.bootstrap,
            "producer.linger.ms": str(self.linger_ms),
            "offset.storage.file.filename": str(self.folder / "offsets"),
            "listeners": f"http://{HOST}:{port}",
        }
        connector = CONNECTOR | {
            "database.hostname": str(given["host"]),
            "database.port": str(given.get("port") or 5432),
            "database.user": str(given["user"]),
            "database.password": str(given.get("password") or ""),
            "database.dbname": str(given["dbname"]),
            "poll.interval.ms": str(self.poll_ms),
            "topic.prefix": self.topic,
            "transforms.outbox.route.topic.replacement": self.topic,
        }
        files = [_written(self.folder / "worker.properties", worker)]
        files += [_written(self.folder / "connector.properties", connector)]
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        return Launch(
            (find_java().command, *JVM, "-cp", f"{installed(JARS) / 'lib'}/*", main, *map(str, files)), self.folder
        )

    def _log(self) -> str:
        log = self.folder / "connect.log"
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]) if log.exists() else ""


def _written(path: Path, settings: Mapping[str, str]) -> Path:
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), "utf-8")
    return path
