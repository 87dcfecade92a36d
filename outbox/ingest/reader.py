"""From a file's bytes to its event data: which reader, under which version."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from outbox.ingest import python, text
from outbox.ingest.naming import PYTHON_SUFFIX, Name


def version_of(path: str) -> int:
    """The version of the reader that a path is for."""
    return python.VERSION if path.endswith(PYTHON_SUFFIX) else text.VERSION


def read(source: bytes, name: Name, path: str, prefix: str = "") -> dict[str, Any]:
    """The data of the file's event. Raises :class:`~outbox.ingest.errors.UnreadableFile`."""
    if path.endswith(PYTHON_SUFFIX):
        return python.read_python(source, name.module, name.is_package, stream=name.stream, path=path, prefix=prefix)
    return text.read_text(source, name.stream, PurePosixPath(path).suffix.lower(), path=path)
