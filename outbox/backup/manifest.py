"""The manifest of a backup: which files belong to it, of which log, and as of which snapshot.

``manifest.json`` is the backup: a file that it does not list does not belong to it, whoever wrote it. It is
replaced in one step after all it lists is on disk, so a backup that was killed leaves the one before.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from outbox.errors import BackupError

FORMAT: Final = 1
"""Raised when an older release could no longer restore what is written."""

NAME: Final = "manifest.json"
READ_BYTES: Final = 1024 * 1024

Tell = Callable[[int, int, str], None]
"""Told the events done, how many there are (0: not known) and which file is being worked on."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Avro object container file. Positions are those of its first and last event."""

    name: str
    sha256: str
    bytes: int
    events: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Increment:
    """What one run wrote: the events that ``snapshot`` sees and the one before did not."""

    at: str
    snapshot: str
    files: tuple[DataFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole backup."""

    log_id: uuid.UUID
    system_identifier: int
    increments: tuple[Increment, ...] = ()
    newest: tuple[int, uuid.UUID] | None = None
    """Position and id of the event with the highest position: a log that still has it has not gone back."""
    unpublished_from: int | None = None
    """Lowest position not published when the last snapshot was taken; None if all was."""
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The Avro schemas that the events were written with, by ``TYPE/FINGERPRINT``."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        return tuple(f for increment in self.increments for f in increment.files)

    @property
    def events(self) -> int:
        return sum(f.events for f in self.files)

    @property
    def snapshot(self) -> str | None:
        """The snapshot that the backup is as of."""
        return self.increments[-1].snapshot if self.increments else None

    @property
    def last_position(self) -> int:
        return max((f.last for f in self.files), default=0)

    def with_increment(self, increment: Increment, **more: Any) -> Manifest:
        """The manifest once this increment is written too."""
        return replace(self, increments=(*self.increments, increment), **more)


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest. Raises :class:`~outbox.errors.BackupError` if it is missing, damaged or too new."""
    path = folder / NAME
    try:
        whole = orjson.loads(path.read_bytes())
        claimed, body = whole["sha256"], whole["backup"]
    except FileNotFoundError as error:
        raise BackupError(f"{folder} holds no backup: {NAME} is missing") from error
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise BackupError(f"{path} cannot be read: {error}") from error
    if _digest(body) != claimed:
        raise BackupError(f"{path} was changed: its digest is not what it says")
    if body["format"] != FORMAT:
        raise BackupError(f"{path} has format {body['format']}, this release reads {FORMAT}: use a newer release")
    return _parsed(body)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step, durably. A crash leaves the old one or the new one."""
    body = orjson.loads(orjson.dumps({"format": FORMAT, **asdict(manifest)}))
    content = orjson.dumps({"sha256": _digest(body), "backup": body}, option=orjson.OPT_INDENT_2)
    part = folder / f"{NAME}.part"
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / NAME)
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def verify(folder: Path, tell: Tell | None = None) -> Manifest:
    """The manifest, after every file it lists was read and found to be what it says.

    Raises :class:`~outbox.errors.BackupError`, naming the first file that is missing or was changed.
    """
    manifest = read_manifest(folder)
    done = 0
    for file in manifest.files:
        _check_file(folder / file.name, file)
        done += file.events
        if tell is not None:
            tell(done, manifest.events, file.name)
    return manifest


def _check_file(path: Path, file: DataFile) -> None:
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as opened:
            while piece := opened.read(READ_BYTES):
                hasher.update(piece)
    except FileNotFoundError as error:
        raise BackupError(f"{path} is missing: the backup is not complete") from error
    if hasher.hexdigest() != file.sha256:
        raise BackupError(f"{path} was changed: its SHA-256 is not the manifest's")


def _digest(body: Any) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _parsed(body: Mapping[str, Any]) -> Manifest:
    newest = body["newest"]
    return Manifest(
        log_id=uuid.UUID(body["log_id"]),
        system_identifier=body["system_identifier"],
        increments=tuple(_increment(i) for i in body["increments"]),
        newest=(newest[0], uuid.UUID(newest[1])) if newest else None,
        unpublished_from=body["unpublished_from"],
        schemas=body["schemas"],
    )


def _increment(body: Mapping[str, Any]) -> Increment:
    files: Sequence[Mapping[str, Any]] = body["files"]
    return Increment(body["at"], body["snapshot"], tuple(DataFile(**f) for f in files))
