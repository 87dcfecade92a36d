"""Fetch a server's jars with Maven, once, into a cache that any number of processes may share.

A folder of the cache is either complete or absent: Maven writes into a folder beside it, which is then renamed. A lock
file lets the second of two processes wait for the first's download instead of repeating it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from deploy.local.errors import DownloadFailed, MissingTool
from deploy.local.java import find_java
from deploy.local.versions import MAVEN_DEPENDENCY_PLUGIN, Jars

CACHE_VARIABLE = "OUTBOX_LOCAL_CACHE"
MAVEN_TIMEOUT_S = 900
"""About 150 MB for the largest server: a quarter of an hour suits a slow line and still ends."""


def cache_folder() -> Path:
    """Return the cache: `OUTBOX_LOCAL_CACHE`, else `~/.cache/outbox-local`."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "outbox-local"


def installed(jars: Jars, arrange: Callable[[Path], None] | None = None, revision: str = "") -> Path:
    """Return the folder of a server, fetching it first if it is not there.

    The folder holds `lib/*.jar`. `arrange(folder)` may lay it out further before anyone else sees it; give `revision`
    any text that changes when `arrange` does, so that an old layout is not taken for a new one. A folder is named for
    what is in it, the coordinates included. Raises MissingTool or DownloadFailed.
    """
    digest = hashlib.sha256("\n".join((*jars.coordinates, revision)).encode()).hexdigest()[:8]
    target = cache_folder() / f"{jars.name}-{jars.version}-{digest}"
    if target.is_dir():
        return target
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            _install(jars, target, arrange)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system drops it if the holder dies.

    The file is left there: removing it would let two processes lock two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(jars: Jars, target: Path, arrange: Callable[[Path], None] | None) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _fetch(jars, staging)
        if arrange:
            arrange(staging)
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(jars: Jars, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingTool(f"{jars.name} is fetched with `mvn`, which was not found: install the package `maven`")
    pom = folder / "pom.xml"
    pom.write_text(_pom(jars), encoding="utf-8")
    command = [maven, "-B", "-q", "-f", str(pom), f"{MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'lib'}"]
    try:
        done = subprocess.run(
            command + options, capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, env=_environment(), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadFailed(f"`mvn` did not fetch {jars.name} {jars.version} in {MAVEN_TIMEOUT_S} s") from error
    if done.returncode or not any((folder / "lib").glob("*.jar")):
        raise DownloadFailed(f"`mvn` could not fetch {jars.name} {jars.version}: {_first_error(done.stdout)}")


def _environment() -> dict[str, str]:
    """Maven needs a Java of its own; where the system has none, lend it the one that will run the servers."""
    environment = dict(os.environ)
    if "JAVA_HOME" not in environment and shutil.which("java") is None:
        environment["JAVA_HOME"] = str(find_java().home)
    return environment


def _first_error(output: str) -> str:
    lines = (line.removeprefix("[ERROR]").strip() for line in output.splitlines() if line.startswith("[ERROR]"))
    return next(filter(None, lines), "it gave no reason")[:400]


def _pom(jars: Jars) -> str:
    dependencies = "\n".join(map(_dependency, jars.coordinates))
    return f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>outbox.local</groupId>
  <artifactId>{escape(jars.name)}</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""


def _dependency(coordinate: str) -> str:
    group, artifact, version = map(escape, coordinate.split(":"))
    inside = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
    return f"    <dependency>{inside}</dependency>"
