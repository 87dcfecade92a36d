"""Kafka as one KRaft node that is broker and controller at once."""

from __future__ import annotations

import base64
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

from deploy.local import archive
from deploy.local.jars import installed
from deploy.local.java import find_java
from deploy.local.ports import HOST
from deploy.local.probe import answers_kafka
from deploy.local.process import Launch
from deploy.local.server import Site
from deploy.local.steps import run_step
from deploy.local.versions import JARS

HEAP = "-Xmx512m"
FORMAT_TIMEOUT_S = 60
JVM = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")


@dataclass(frozen=True, slots=True)
class Kafka:
    """One node; its first port is for clients, its second for the controller's own listener."""

    name: str = "kafka"
    port_count: int = 2
    stop_signal: signal.Signals = signal.SIGTERM

    def address(self, port: int) -> str:
        """Return the bootstrap server."""
        return f"{HOST}:{port}"

    def answers(self, port: int) -> bool:
        """Tell whether the broker is listed in its own metadata."""
        return answers_kafka(port)

    def prepare(self, site: Site) -> Launch:
        """Write the configuration and, on first use, format the storage."""
        runtime, shared = find_java(), installed(JARS["kafka"])
        java = [runtime.command, HEAP, *JVM]
        classes = ["-cp", f"{shared / 'lib'}/*"]
        properties = site.folder / "server.properties"
        settings = {**_settings(site), **site.settings}
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()), encoding="utf-8")
        if not (site.folder / "data" / "meta.properties").exists():
            _format([*java, *classes], properties)
        flags = archive.flags(runtime, shared, site.folder)
        return Launch((*java, *flags, *classes, "kafka.Kafka", str(properties)), site.folder)


def _settings(site: Site) -> dict[str, str]:
    broker, controller = site.ports
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{broker},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(site.folder / "data"),
        "auto.create.topics.enable": "false",
        # One node: nothing can have a second copy, and nobody else will join a group while it waits.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "5",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "5",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        # After a crash the controller refuses the broker until its old session is over: nine seconds by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
    }


def _format(java: list[str], properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    # `=` keeps an id that begins with a dash from being read as an option.
    command = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
    what = "formatting Kafka's storage"
    run_step(what, [*command, "--ignore-formatted"], folder=properties.parent, timeout_s=FORMAT_TIMEOUT_S)
