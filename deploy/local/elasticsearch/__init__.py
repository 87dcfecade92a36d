"""Elasticsearch as one node with HTTP and without security, from the jars of the server alone.

Left out, because these parts are not on Maven Central: `_delete_by_query`, `_update_by_query`, `_reindex`, scripts,
language analyzers, lifecycle policies, security and reciprocal rank fusion.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local import archive
from deploy.local.elasticsearch.layout import arrange, revision
from deploy.local.jars import installed
from deploy.local.java import Java, find_java
from deploy.local.ports import HOST
from deploy.local.probe import answers_http
from deploy.local.process import Launch
from deploy.local.server import Site
from deploy.local.versions import JARS

MAIN: Final = "outbox.local.LocalNode"
VECTOR_MODULE: Final = "jdk.incubator.vector"
UNSAFE_FLAG_SINCE = 24
JVM: Final = (
    "-Xmx1g",
    "-XX:+ExitOnOutOfMemoryError",
    "--enable-native-access=ALL-UNNAMED",
    # The native vector library can hang indexing when the node is started this way.
    "-Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false",
    "-Dlog4j2.disable.jmx=true",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.noKeySetOptimization=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
)
SETTINGS: Final[dict[str, str]] = {
    "cluster.name": "outbox-local",
    "node.name": "local",
    "network.host": HOST,
    "transport.port": "0",
    "discovery.type": "single-node",
    # A nearly full disk on a developer's machine must not turn every index read-only.
    "cluster.routing.allocation.disk.threshold_enabled": "false",
}


@dataclass(frozen=True, slots=True)
class Elasticsearch:
    """One node."""

    name: str = "elasticsearch"
    port_count: int = 1
    stop_signal: signal.Signals = signal.SIGTERM

    def address(self, port: int) -> str:
        """Return the URL."""
        return f"http://{HOST}:{port}"

    def answers(self, port: int) -> bool:
        """Tell whether the cluster has a master and every primary shard."""
        return answers_http(port, "/_cluster/health?wait_for_status=yellow&timeout=1s")

    def prepare(self, site: Site) -> Launch:
        """Make the node's own folders round the shared jars."""
        shared = installed(JARS["elasticsearch"], arrange, revision())
        for name in ("config", "plugins", "logs", "data"):
            (site.folder / name).mkdir(exist_ok=True)
        _link(site.folder / "modules", shared / "modules")
        paths = {"path.data": str(site.folder / "data"), "path.logs": str(site.folder / "logs")}
        settings = {**SETTINGS, **paths, "http.port": str(site.port), **site.settings}
        pairs = [f"{key}={value}" for key, value in settings.items()]
        java = find_java()
        flags = (*_flags(java, shared), *archive.flags(java, shared, site.folder))
        command = (java.command, *flags, "-cp", f"{shared / 'lib'}/*", MAIN, str(site.folder))
        return Launch((*command, *pairs), site.folder)


def _flags(java: Java, shared: Path) -> list[str]:
    flags = [*JVM, f"-Des.nativelibs.path={shared / 'native'}"]
    if java.feature >= UNSAFE_FLAG_SINCE:
        flags.append("--sun-misc-unsafe-memory-access=allow")
    if java.has_module(VECTOR_MODULE):
        flags.append(f"--add-modules={VECTOR_MODULE}")
    return flags


def _link(link: Path, target: Path) -> None:
    """Point to the shared folder, anew each time: an earlier start may have used another version."""
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)
