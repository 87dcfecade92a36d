"""Neo4j, community edition, with Bolt only and without authentication."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from deploy.local import archive
from deploy.local.jars import installed
from deploy.local.java import find_java
from deploy.local.ports import HOST
from deploy.local.probe import answers_bolt
from deploy.local.process import Launch
from deploy.local.server import Site
from deploy.local.versions import JARS

OPENED_PACKAGES: Final = ("java.nio", "java.io", "sun.nio.ch", "java.util.concurrent")
JVM: Final = (
    "-Xmx512m",
    "-XX:+UseG1GC",
    "-XX:+ExitOnOutOfMemoryError",
    "--enable-native-access=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dlog4j2.disable.jmx=true",
    "-Dfile.encoding=UTF-8",
)
SETTINGS: Final[dict[str, str]] = {
    "server.bolt.tls_level": "DISABLED",
    "server.http.enabled": "false",
    "server.https.enabled": "false",
    "dbms.security.auth_enabled": "false",
    "dbms.usage_report.enabled": "false",
    "server.memory.pagecache.size": "128m",
    "db.tx_log.rotation.size": "32m",
    "db.tx_log.preallocate": "false",
    # Without this, a stop waits ten seconds for clients that might still say something.
    "internal.dbms.bolt.netty_server_shutdown_quiet_period": "0",
}


@dataclass(frozen=True, slots=True)
class Neo4j:
    """One server with the database `neo4j`."""

    name: str = "neo4j"
    port_count: int = 1
    stop_signal: signal.Signals = signal.SIGTERM

    def address(self, port: int) -> str:
        """Return the Bolt URL."""
        return f"bolt://{HOST}:{port}"

    def answers(self, port: int) -> bool:
        """Tell whether it shakes hands."""
        return answers_bolt(port)

    def prepare(self, site: Site) -> Launch:
        """Write the configuration; the server makes its own folders."""
        listen = {f"server.bolt.{key}_address": f"{HOST}:{site.port}" for key in ("listen", "advertised")}
        settings = {**SETTINGS, **listen, **site.settings}
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        configuration = site.folder / "conf"
        configuration.mkdir(exist_ok=True)
        (configuration / "neo4j.conf").write_text(lines, encoding="utf-8")
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED_PACKAGES]
        runtime, shared = find_java(), installed(JARS["neo4j"])
        flags = (*JVM, *opened, *archive.flags(runtime, shared, site.folder))
        java = (runtime.command, *flags, "-cp", f"{shared / 'lib'}/*")
        folders = (f"--home-dir={site.folder}", f"--config-dir={configuration}", "--console-mode")
        return Launch((*java, "org.neo4j.server.Neo4jCommunity", *folders), site.folder)
