"""Walks the PATHs given, in one order whatever the file system's.

Real folders come before linked ones, and each folder is walked once: so a loop of links ends, and a file
reached in two ways has the name its real place gives it.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from outbox.ingest.errors import SourceError
from outbox.ingest.naming import PYTHON_SUFFIX
from outbox.ingest.options import Options

TEXT_SUFFIXES: Final = frozenset({".md", ".markdown", ".rst", ".txt"})

_ENVIRONMENT_MARKS: Final = frozenset({"pyvenv.cfg", "conda-meta"})
"""A folder that holds one of these is a virtual environment (PEP 405) or conda's."""


class Failure(NamedTuple):
    """A file or folder that was left out, and why, in one line."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """A root to read. ``name`` is what its streams' events carry as their source."""

    folder: Path
    name: str
    only: frozenset[str] = frozenset()
    """If not empty, read just these files (relative paths): nothing else is taken to be gone."""


@dataclass(slots=True)
class Scan:
    """What one walk found."""

    source: Source
    files: list[str] = field(default_factory=list)
    """Posix paths relative to the root, sorted: those to read."""
    present: list[str] = field(default_factory=list)
    """Every Python or text file met, to be read or not: a module's name depends on its neighbours."""
    refused: dict[str, str] = field(default_factory=dict)
    """Files that are there but are not read, with the reason."""
    unlisted: list[Failure] = field(default_factory=list)
    """Folders that could not be listed: what is in them is unknown, not gone."""


def sources(paths: Sequence[str | Path]) -> list[Source]:
    """The roots that PATHs stand for, in their order. A PATH is a folder or a file; ``NAME=PATH`` names it.

    The default name is the folder's base name. A file stands for itself alone within its folder, for a
    module the folder above its outermost package. Raises :class:`SourceError` for a PATH that is missing,
    and for two folders of one name.
    """
    found: dict[str, Source] = {}
    for path in paths:
        source = _source(path)
        known = found.setdefault(source.name, source)
        if known.folder != source.folder:
            raise SourceError(
                f"{known.folder} and {source.folder} are both named {source.name!r}: name one of them, as NAME=PATH"
            )
        only = known.only | source.only if known.only and source.only else frozenset()
        found[source.name] = Source(known.folder, known.name, only)
    return list(found.values())


def scan(source: Source, options: Options) -> Scan:
    """Everything under the root that is Python or text. Raises :class:`SourceError` if the root cannot be read."""
    result = Scan(source)
    pending, linked = [""], list[str]()
    walked: set[tuple[int, int]] = set()
    while pending or linked:
        folder = pending.pop() if pending else linked.pop(0)
        if not _first_visit(source.folder / folder, walked):
            continue
        inner = _list(folder, result, options)
        pending.extend(sorted((path for path, link in inner if not link), reverse=True))
        linked.extend(sorted(path for path, link in inner if link))
        if len(result.present) > options.files_max:
            raise SourceError(f"{source.folder} holds more than {options.files_max} files: give folders further inside")
    for path in source.only.difference(result.present):
        result.refused[path] = "hidden, or left out by a skip pattern"
    result.files.sort()
    return result


def shown(path: str | Path) -> str:
    """The path for people: bytes that are no text are escaped."""
    return os.fspath(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _source(given: str | Path) -> Source:
    name, text = _split(given)
    if not text:
        raise SourceError(f"PATH {shown(given)!r} is empty; for the current folder write '.'")
    path = Path(os.path.abspath(text))  # noqa: PTH100  resolve() would take a link's target for the name
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if is_folder:
            os.scandir(path).close()
    except OSError as error:
        raise SourceError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    folder = path if is_folder else _root_of(path)
    if not is_folder and not _wanted(path.name):
        raise SourceError(f"{shown(path)} is neither Python (.py) nor text ({', '.join(sorted(TEXT_SUFFIXES))})")
    only = frozenset() if is_folder else frozenset({path.relative_to(folder).as_posix()})
    return Source(folder, _checked(name or folder.name, path), only)


def _split(given: str | Path) -> tuple[str, str]:
    text = os.fspath(given)
    name, equals, path = text.partition("=")
    return (name, path) if equals and "/" not in name and not os.path.lexists(text) else ("", text)


def _checked(name: str, path: Path) -> str:
    if not name or "/" in name or not name.isprintable():
        raise SourceError(f"{shown(path)} cannot be named {shown(name)!r}: give it a name, as NAME=PATH")
    return name


def _root_of(file: Path) -> Path:
    folder = file.parent
    while file.suffix == PYTHON_SUFFIX and (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


def _first_visit(folder: Path, walked: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return True  # listing it will say why
    identity = (status.st_dev, status.st_ino)
    if identity in walked:
        return False
    walked.add(identity)
    return True


def _list(folder: str, result: Scan, options: Options) -> list[tuple[str, bool]]:
    """Note the files of one folder; return its folders to walk, with whether each is a link."""
    root = result.source.folder
    try:
        with os.scandir(root / folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not folder:
            raise SourceError(f"cannot read {shown(root)}: {error.strerror or error}") from error
        result.unlisted.append(Failure(shown(root / folder), error.strerror or str(error)))
        return []
    if folder and any(entry.name in _ENVIRONMENT_MARKS for entry in found):
        return []
    return list(_enter(folder, found, result, options))


def _enter(
    folder: str, entries: Sequence[os.DirEntry[str]], result: Scan, options: Options
) -> Iterator[tuple[str, bool]]:
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or _skipped(entry.name, path, options.skip):
            continue
        if _is_folder(entry):
            if _leads_to(path, result.source.only):
                yield path, entry.is_symlink()
        elif _wanted(entry.name):
            _note_file(entry, path, result, options)


def _leads_to(folder: str, only: frozenset[str]) -> bool:
    """Whether a folder must be walked: for single files, just those above them and those of the same name."""
    return not only or any(path.startswith(f"{folder}/") or path == f"{folder}{PYTHON_SUFFIX}" for path in only)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: its stat says so


def _note_file(entry: os.DirEntry[str], path: str, result: Scan, options: Options) -> None:
    only = result.source.only
    result.present.append(path)
    if only and path not in only:
        return
    try:
        status = entry.stat()
    except OSError as error:
        result.refused[path] = error.strerror or str(error)
        return
    if not stat.S_ISREG(status.st_mode):
        return  # opening a pipe or a device would hang
    if status.st_size > options.file_bytes_max:
        result.refused[path] = f"{status.st_size} bytes are more than {options.file_bytes_max}"
    else:
        result.files.append(path)


def _wanted(name: str) -> bool:
    return name.endswith(PYTHON_SUFFIX) or os.path.splitext(name)[1].lower() in TEXT_SUFFIXES  # noqa: PTH122


def _skipped(name: str, path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(path, p) for p in patterns)
