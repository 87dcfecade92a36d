"""Real Python files: the standard library's and those of every package installed here, each content once."""

from __future__ import annotations

import hashlib
import random
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

SEED: Final = 20_242
INSTALLED: Final = ("site-packages", "dist-packages")


def files(further: Sequence[Path] = ()) -> list[tuple[Path, Path]]:
    """All there are, each with the folder it is found under, in the same order every time.

    Files of the same content are one: package after package has the same empty ``__init__.py``. ``further``: folders
    of more packages, where those installed here are too few.
    """
    paths = sysconfig.get_paths()
    found: dict[bytes, tuple[Path, Path]] = {}
    for root in (Path(paths["stdlib"]), Path(paths["purelib"]), *further):
        for path in sorted(_sources(root)):
            found.setdefault(hashlib.sha256(path.read_bytes()).digest(), (root, path))
    return list(found.values())


def copied(count: int, to: Path, further: Sequence[Path] = ()) -> int:
    """Copy ``count`` of them, chosen by a fixed seed, as a tree below ``to``; how many there were."""
    known = files(further)
    chosen = random.Random(SEED).sample(known, min(count, len(known)))
    for root, path in chosen:
        copy = to / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return len(chosen)


def _sources(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        if path.is_file() and not set(INSTALLED) & set(path.relative_to(root).parts):
            yield path
