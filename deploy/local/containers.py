"""The same servers as containers, through testcontainers, for machines with a Docker engine.

Each container publishes its port on a loopback port chosen beforehand, as Kafka must be told at its start how clients
will reach it. Only an engine on this machine is used: another machine's loopback would be out of reach.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final

from deploy.local.errors import ServersUnavailable
from deploy.local.ports import HOST, reserve
from deploy.local.servers import SERVERS
from deploy.local.versions import IMAGES

ENGINE_ANSWERS_WITHIN_S = 3
READY_WITHIN_S = 120.0
ASK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Container:
    """How to run one image: the port inside, the environment (given the port outside) and the command."""

    port: int
    environment: Callable[[int], Mapping[str, str]] = field(default=lambda _port: {})
    command: tuple[str, ...] = ()


def _kafka(port: int) -> dict[str, str]:
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{HOST}:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    }


CONTAINERS: Final[dict[str, Container]] = {
    "postgres": Container(
        5432,
        lambda _port: {"POSTGRES_HOST_AUTH_METHOD": "trust"},
        ("postgres", "-c", "wal_level=logical", "-c", "max_connections=200", "-c", "max_replication_slots=20"),
    ),
    "kafka": Container(9092, _kafka),
    "neo4j": Container(7687, lambda _port: {"NEO4J_AUTH": "none", "NEO4J_server_memory_heap_max__size": "512m"}),
    "elasticsearch": Container(
        9200,
        lambda _port: {
            "discovery.type": "single-node",
            "xpack.security.enabled": "false",
            "ES_JAVA_OPTS": "-Xms512m -Xmx1g",
            "cluster.routing.allocation.disk.threshold_enabled": "false",
        },
    ),
    "chroma": Container(8000),
}


def engine_answers() -> bool:
    """Tell whether a Docker engine on this machine answers. No engine is no error."""
    if os.environ.get("DOCKER_HOST", "unix://").split(":")[0] not in ("unix", "npipe"):
        return False
    try:
        docker = import_module("docker")
        import_module("testcontainers.core.container")  # `run` needs it, so find out now
    except ImportError:
        return False
    try:
        with closing(docker.from_env(timeout=ENGINE_ANSWERS_WITHIN_S)) as client:
            return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False


def run(names: tuple[str, ...], until: ExitStack) -> dict[str, str]:
    """Run these servers as containers until the stack is closed; return their addresses by service."""
    ports = {name: _publish(name, until) for name in names}
    for name, port in ports.items():
        _wait(name, port)
    return {name: SERVERS[name].address(port) for name, port in ports.items()}


def _publish(name: str, until: ExitStack) -> int:
    from testcontainers.core.container import DockerContainer

    wanted = CONTAINERS[name]
    reservation = reserve(1)
    port = reservation.ports[0]
    reservation.close()  # the engine's proxy would not share it
    container = DockerContainer(IMAGES[name], ports=[wanted.port])
    container.ports[wanted.port] = (HOST, port)
    for key, value in wanted.environment(port).items():
        container.with_env(key, value)
    if wanted.command:
        container.with_command(list(wanted.command))
    until.callback(container.stop)
    container.start()
    return port


def _wait(name: str, port: int) -> None:
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        if SERVERS[name].answers(port):
            return
        time.sleep(ASK_EVERY_S)
    raise ServersUnavailable(f"the container of {name} did not answer within {READY_WITHIN_S:.0f} s")
