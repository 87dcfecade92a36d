"""Start a JVM from an archive of the classes that an earlier run loaded: half the time to the first answer, or less.

Java 19 and newer can write such an archive when they end (class data sharing). The first run of a server in a cache
writes one into its own folder; once it has ended in good order the archive is moved into the cache, in one step, and
later runs map it. Java itself checks that an archive fits its release and class path and goes on without it if not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from deploy.local.java import Java

WRITTEN: Final = "classes.jsa"
DESTINATION: Final = "classes.destination"


def flags(java: Java, shared: Path, folder: Path) -> list[str]:
    """Return the flags for a server whose jars are in `shared` (in the cache) and whose own folder is `folder`."""
    if not (java.home / "lib" / "server" / "classes.jsa").exists():
        return []  # a cut-down runtime without the archive that ours would build upon
    archive = shared / f"classes-{java.feature}-{_release(java)}.jsa"
    if archive.exists():
        return [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
    (folder / DESTINATION).write_text(str(archive), encoding="utf-8")
    return [f"-XX:ArchiveClassesAtExit={folder / WRITTEN}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]


def collect(folder: Path) -> None:
    """Move the archive that a server wrote as it ended into the cache. Call it only after an end in good order."""
    written, destination = folder / WRITTEN, folder / DESTINATION
    if written.exists() and destination.exists():
        target = Path(destination.read_text(encoding="utf-8"))
        # The home may be on another disk than the cache, where a rename alone would not do.
        staging = target.with_name(f".{target.name}-{folder.stat().st_ino}")
        staging.write_bytes(written.read_bytes())
        staging.replace(target)
        written.unlink()


def _release(java: Java) -> str:
    try:
        text = (java.home / "release").read_bytes()
    except OSError:
        text = str(java.home).encode()
    return hashlib.sha256(text).hexdigest()[:8]
