"""Avro object container files of the log's rows (Avro 1.12 specification, "Object Container Files").

One record an event, all columns but ``xid`` (which means nothing in another cluster). ``data`` stays as it is in
the log: Avro's single-object encoding, whose schemas the manifest carries. Any Avro library reads these files.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from fastavro import parse_schema, reader
from fastavro.write import Writer

from outbox.backup.manifest import DataFile
from outbox.errors import BackupError

FILE_BYTES: Final = 64 * 1024 * 1024
"""A file is closed once it has so many bytes: what is restored or copied again after a fault stays small."""

BLOCK_BYTES: Final = 256 * 1024
"""Events are compressed in blocks of this size: twice this is what writing holds in memory."""

CODEC: Final = "deflate"
"""The one codec, besides none, that every Avro library must have."""

LEVEL: Final = 1
"""Events are small and alike: the highest level gains a tenth and takes three times as long."""

SCHEMA: Final = parse_schema(
    {
        "type": "record",
        "name": "Event",
        "namespace": "outbox.backup",
        "fields": [
            {"name": "position", "type": "long"},
            {"name": "stream", "type": "string"},
            {"name": "version", "type": "long"},
            {"name": "type", "type": "string"},
            {"name": "id", "type": {"type": "fixed", "name": "Uuid", "size": 16}},
            {"name": "data", "type": "bytes"},
            {"name": "meta", "type": "string", "doc": "JSON"},
            {"name": "at_us", "type": "long", "doc": "microseconds since 2000-01-01 UTC"},
        ],
    }
)


class Line(NamedTuple):
    """One event as it is backed up, in the order of the schema's fields."""

    position: int
    stream: str
    version: int
    type: str
    id: uuid.UUID
    data: bytes
    meta: str
    at_us: int


class _Digesting:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, piece: bytes) -> int:
        self.sha256.update(piece)
        self.bytes += len(piece)
        return self._file.write(piece)

    def seekable(self) -> bool:
        """A file that can be sought in would be looked into for what to append to."""
        return False

    def flush(self) -> None:
        self._file.flush()


class FileWriter:
    """Writes one file under a provisional name; :meth:`finish` makes it durable and gives it its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._part = folder / f"{name}.part"
        self._file = self._part.open("wb")
        self._digesting = _Digesting(self._file)
        self._writer = Writer(self._digesting, SCHEMA, CODEC, BLOCK_BYTES, compression_level=LEVEL)
        self._events, self._first, self._last = 0, 0, 0

    def write(self, line: Line) -> None:
        """Add one event; positions must rise."""
        self._writer.write(line._asdict() | {"id": line.id.bytes})
        self._first = self._first or line.position
        self._last = line.position
        self._events += 1

    @property
    def full(self) -> bool:
        return self._digesting.bytes >= FILE_BYTES

    def finish(self) -> DataFile:
        self._writer.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)
        digest = self._digesting.sha256.hexdigest()
        return DataFile(self._path.name, digest, self._digesting.bytes, self._events, self._first, self._last)


def read_file(path: Path) -> Iterator[Line]:
    """The events of a file. Raises :class:`~outbox.errors.BackupError` if it is no such file."""
    try:
        with path.open("rb") as file:
            for record in reader(file):
                fields: dict[str, Any] = record
                yield Line(**(fields | {"id": uuid.UUID(bytes=fields["id"])}))
    except (OSError, ValueError, EOFError, TypeError, KeyError) as error:
        raise BackupError(f"{path} cannot be read: {error}") from error
