"""Which stream a file has.

Python: ``python-<dotted module>`` if the file can be imported from its root, so that an import in one
root finds its module in another; else ``python-<root>/<path>``. Text: ``text-<root>/<path>``.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

PYTHON: Final = "python"
TEXT: Final = "text"
PYTHON_SUFFIX: Final = ".py"

_PACKAGE: Final = "__init__"


@dataclass(frozen=True, slots=True)
class Name:
    """A file's stream and, for Python that can be imported, its module."""

    stream: str
    module: str = ""
    is_package: bool = False


def module_stream(module: str, prefix: str = "") -> str:
    """The stream of the module with this dotted name."""
    return f"{PYTHON}-{prefix}{module}"


class Namer:
    """Names the files of one root."""

    def __init__(self, root: str, files: Iterable[str], prefix: str = "") -> None:
        """``files``: every file under the root, read or not, as posix paths relative to it."""
        self._root = root
        self._prefix = prefix
        self._files = frozenset(f for f in files if f.endswith(PYTHON_SUFFIX))
        self._is_package = f"{_PACKAGE}{PYTHON_SUFFIX}" in self._files

    def name(self, path: str) -> Name:
        """The name of the file at ``path`` (posix, relative to the root)."""
        if not path.endswith(PYTHON_SUFFIX):
            return Name(f"{TEXT}-{self._prefix}{self._root}/{path}")
        module = self._module(path)
        if not module:
            return Name(f"{PYTHON}-{self._prefix}{self._root}/{path}")
        return Name(module_stream(module, self._prefix), module, PurePosixPath(path).stem == _PACKAGE)

    def _module(self, path: str) -> str:
        """The dotted name under which Python would import this very file, or nothing."""
        parts = list(PurePosixPath(path).with_suffix("").parts)
        if self._shadowed(parts):
            return ""
        if parts[-1] == _PACKAGE:
            parts.pop()
        if self._is_package:
            parts = [*self._root.split("."), *parts]
        return ".".join(parts) if parts and all(map(_importable, parts)) else ""

    def _shadowed(self, parts: list[str]) -> bool:
        """Whether another file is imported in its place, or in the place of a folder above it.

        Python's path finder takes ``a/__init__.py`` before ``a.py``, and ``a.py`` before a folder ``a``
        without ``__init__.py``.
        """
        own = "/".join(parts)
        if parts[-1] != _PACKAGE and f"{own}/{_PACKAGE}{PYTHON_SUFFIX}" in self._files:
            return True
        above = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return any(
            f"{folder}{PYTHON_SUFFIX}" in self._files and f"{folder}/{_PACKAGE}{PYTHON_SUFFIX}" not in self._files
            for folder in above
        )


def _importable(part: str) -> bool:
    return part.isidentifier() and not keyword.iskeyword(part)
