"""Python's own library as a corpus, and what it should come to by a reading that is not the product's."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from tests.e2e import independent

LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idle_test", "site-packages", "__pycache__", "lib-dynload", "config-*"
)


def copy_library(target: Path) -> Path:
    """The library's .py files without its tests."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = Path(folder)
        return set(LEFT_OUT(folder, names)) | {n for n in names if not n.endswith(".py") and not (here / n).is_dir()}

    shutil.copytree(sysconfig.get_paths()["stdlib"], target, ignore=left_out)
    return target


def expected_keys(folder: Path) -> set[str]:
    """Every record key: the modules by their dotted names (by their paths, if no import can name them), and what
    each one defines."""
    keys: set[str] = set()
    for path in folder.rglob("*.py"):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        importable = all(part.isidentifier() for part in parts)
        stream = "python-" + (".".join(parts) if importable else f"{folder.name}/{path.relative_to(folder).as_posix()}")
        keys.add(stream)
        keys |= {f"{stream}#{key}" for key in independent.python(path.read_bytes()).keys}
    return keys
