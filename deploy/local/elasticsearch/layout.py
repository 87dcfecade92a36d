"""Turn the jars that Maven brings into a home that an Elasticsearch node accepts.

The full distribution is no Maven artefact, so three things are made here: the module that speaks HTTP (its jar, Netty
and a descriptor in a folder of their own), the module that answers `GET /`, and the main class. The last two are ours,
in Java beside this file, and are compiled by Eclipse's compiler: it runs on a plain runtime, where there is no javac.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.local.errors import MissingTool
from deploy.local.java import find_java
from deploy.local.steps import run_step
from deploy.local.versions import ELASTICSEARCH, JAVA_MINIMUM

SOURCES: Final = tuple(sorted(Path(__file__).parent.glob("*.java")))
COMPILER: Final = "org.eclipse.jdt.internal.compiler.batch.Main"
COMPILE_TIMEOUT_S = 120
HTTP_MODULE, BANNER_MODULE = "transport-netty4", "outbox-banner"
DESCRIPTOR: Final = "plugin-descriptor.properties"
LIBRARY_FOLDERS: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")


def revision() -> str:
    """Return a digest of this layout and the Java sources: a cached home made from others is not used."""
    texts = [path.read_bytes() for path in (*SOURCES, Path(__file__))]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def arrange(folder: Path) -> None:
    """Lay out `folder`, which holds `lib/*.jar`, as an Elasticsearch home. Raises LocalError."""
    zstd = find_zstd()
    library = folder / "lib"
    compiler = _take(library, folder / "compiler", r"ecj-.*")
    _take(library, folder / "modules" / HTTP_MODULE, rf"{HTTP_MODULE}-.*|netty-.*")
    _keep_descriptor(folder / "modules" / HTTP_MODULE)
    classes = folder / "classes"
    _compile(compiler, library, classes)
    _pack(classes, "LocalNode", library / "outbox-local.jar")
    _pack_banner(classes, folder / "modules" / BANNER_MODULE)
    shutil.rmtree(classes)
    native = folder / "native"
    native.mkdir()
    # Elasticsearch asks for this name, without the version that systems put behind it.
    shutil.copy(zstd, native / ("libzstd.dylib" if platform.system() == "Darwin" else "libzstd.so"))


def find_zstd() -> Path:
    """Find the zstd library, which Elasticsearch needs for compressed indexes. Raises MissingTool."""
    found = next(_zstd_candidates(), None)
    if found is None:
        raise MissingTool("elasticsearch needs the zstd library: install `libzstd1` (Debian) or `zstd` (brew)")
    return found


def _zstd_candidates() -> Iterator[Path]:
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    if Path(ldconfig).exists():
        listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
        word = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(platform.machine(), "")
        for line in listed.splitlines():
            if line.strip().startswith("libzstd.so") and word in line:
                yield Path(line.split("=>")[1].strip())
    triplet = f"{platform.machine()}-linux-gnu"
    for name in LIBRARY_FOLDERS:
        for folder in (Path(name) / triplet, Path(name)):
            yield from sorted(folder.glob("libzstd.so*"))
            yield from sorted(folder.glob("libzstd.dylib"))


def _take(library: Path, target: Path, pattern: str) -> Path:
    """Move the jars whose names match out of the class path."""
    target.mkdir(parents=True)
    for jar in sorted(library.glob("*.jar")):
        if re.fullmatch(pattern, jar.name):
            jar.rename(target / jar.name)
    return target


def _keep_descriptor(module: Path) -> None:
    """Put the jar's own descriptor beside it, less the Java module name: we run everything on the class path."""
    jar = next(module.glob(f"{HTTP_MODULE}-*.jar"))
    with zipfile.ZipFile(jar) as archive:
        lines = archive.read(f"META-INF/es-plugins/{HTTP_MODULE}/{DESCRIPTOR}").decode("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("modulename=")]
    (module / DESCRIPTOR).write_text("\n".join(kept) + "\n", encoding="utf-8")


def _compile(compiler: Path, library: Path, classes: Path) -> None:
    java = [find_java().command, "-cp", f"{compiler}/*", COMPILER]
    path = ":".join(str(jar) for jar in sorted(library.glob("*.jar")))
    level = ["-source", str(JAVA_MINIMUM), "-target", str(JAVA_MINIMUM), "-nowarn", "-proc:none"]
    command = [*java, *level, "-cp", path, "-d", str(classes), *map(str, SOURCES)]
    run_step("compiling our part of Elasticsearch", command, folder=library.parent, timeout_s=COMPILE_TIMEOUT_S)


def _pack(classes: Path, name: str, jar: Path) -> None:
    """Put one of our classes, with those inside it, into a jar: Java archives no classes that lie in a folder."""
    with zipfile.ZipFile(jar, "w") as archive:
        for compiled in sorted(classes.rglob(f"{name}*.class")):
            archive.write(compiled, compiled.relative_to(classes))


def _pack_banner(classes: Path, module: Path) -> None:
    module.mkdir()
    _pack(classes, "BannerPlugin", module / f"{BANNER_MODULE}.jar")
    descriptor = {
        "name": BANNER_MODULE,
        "description": "Answers GET / for local servers",
        "version": "1",
        "elasticsearch.version": ELASTICSEARCH,
        "java.version": str(JAVA_MINIMUM),
        "classname": "outbox.local.BannerPlugin",
    }
    lines = "".join(f"{key}={value}\n" for key, value in descriptor.items())
    (module / DESCRIPTOR).write_text(lines, encoding="utf-8")
