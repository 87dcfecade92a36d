"""The bounds and choices of one ingest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SKIPPED_FOLDERS: Final = ("__pycache__", "node_modules")
"""Folders that never hold anyone's own source. Hidden folders and virtual environments are skipped as well."""


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds (each above zero) and choices; the defaults fit a large repository on a small machine."""

    prefix: str = ""
    """Stands after the category in every stream's name and every link: ``python-<prefix>pkg.module``."""
    skip: tuple[str, ...] = SKIPPED_FOLDERS
    """Patterns (:mod:`fnmatch`) of files and folders to leave out, matched with the name and the relative path."""
    file_bytes_max: int = 2 * 1024 * 1024
    """Larger files are reported, not read."""
    files_max: int = 1_000_000
    """More files than this under one PATH are taken for a mistake."""
    batch_streams: int = 200
    """Streams in one append (one transaction)."""
    batch_bytes: int = 512 * 1024
    """Bytes of source in one append, unless a single file is larger. Stores follow while the next one is read, so an
    append holds what takes some tenths of a second to read: a commit of its own is a hundredth of that."""
    attempts: int = 5
    """How often a stream is tried, alone, when other writers keep changing it."""
