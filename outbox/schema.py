"""Schema files: one Avro record per event type and version, found by name and checked one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastavro.schema import SchemaParseException, UnknownType, fingerprint, parse_schema, to_parsing_canonical_form

from outbox.encoder import Encoder
from outbox.errors import SchemaError

FILE_NAME: Final = re.compile(r"(?P<type>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)\.v(?P<version>[1-9]\d{0,4})\.avsc", re.ASCII)
MARKER: Final = b"\xc3\x01"
"""First bytes of Avro's single-object encoding, version 1 (Avro 1.12 specification, "Single-object encoding")."""

HEADER_BYTES: Final = 10
"""The marker and the eight bytes of the schema's fingerprint."""


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """One version of one event type, ready to write and read."""

    type: str
    version: int
    name: str
    """The record's full name."""
    fingerprint: str
    """CRC-64-AVRO of the parsing canonical form: 16 hexadecimal digits, the first one the most significant."""
    path: Path
    source: Mapping[str, Any] = field(repr=False, compare=False)
    parsed: Mapping[str, Any] = field(repr=False, compare=False)
    encoder: Encoder = field(repr=False, compare=False)

    @property
    def header(self) -> bytes:
        """What the single-object encoding of this version begins with."""
        return MARKER + bytes.fromhex(self.fingerprint)[::-1]


def load(folders: Iterable[Path]) -> dict[str, tuple[SchemaVersion, ...]]:
    """Every event type of ``folders`` with its versions, 1 to the newest. Raises SchemaError."""
    types: dict[str, tuple[SchemaVersion, ...]] = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for event_type, versions in _load_folder(folder).items():
            if event_type in types:
                raise SchemaError(
                    f"{versions[0].path}: event type {event_type} is also defined in "
                    f"{types[event_type][0].path.parent}: rename one, or move all its versions to one folder"
                )
            types[event_type] = versions
    return types


def _load_folder(folder: Path) -> dict[str, tuple[SchemaVersion, ...]]:
    if not folder.is_dir():
        raise SchemaError(f"{folder}: no such folder of schemas")
    found: dict[str, dict[int, SchemaVersion]] = {}
    for path in sorted(folder.glob("*.avsc")):
        version = _load_file(path)
        found.setdefault(version.type, {})[version.version] = version
    return {event_type: _contiguous(versions) for event_type, versions in found.items()}


def _contiguous(versions: Mapping[int, SchemaVersion]) -> tuple[SchemaVersion, ...]:
    for expected, version in enumerate(sorted(versions), start=1):
        if version != expected:
            raise SchemaError(
                f"{versions[version].path}: {versions[version].type} has no version {expected}: "
                "versions count 1, 2, 3, ... and none is ever removed, because the log still holds its events"
            )
    return tuple(versions[version] for version in sorted(versions))


def _load_file(path: Path) -> SchemaVersion:
    match = FILE_NAME.fullmatch(path.name)
    if match is None:
        raise SchemaError(f"{path}: name it <event type>.v<version>.avsc, such as order.placed.v1.avsc")
    source = _read(path)
    parsed = _parse(path, source)
    return SchemaVersion(
        type=match["type"],
        version=int(match["version"]),
        name=parsed["name"],
        fingerprint=bytes.fromhex(fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO"))[::-1].hex(),
        path=path,
        source=source,
        parsed=parsed,
        encoder=_encoder(path, parsed),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        source = json.loads(path.read_bytes())
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path}: not JSON: {_line(error)}") from error
    if not isinstance(source, dict) or source.get("type") != "record":
        raise SchemaError(f'{path}: an event\'s schema must be an object with "type": "record"')
    if not isinstance(source.get("fields"), list):  # fastavro would take it for a record without any
        raise SchemaError(f'{path}: an event\'s schema must have its "fields", a list ([] if it has none)')
    return source


def _parse(path: Path, source: dict[str, Any]) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = parse_schema(source)
    except UnknownType as error:
        raise SchemaError(
            f"{path}: unknown type {error.name!r}: define it in this file, before its first use"
        ) from error
    except KeyError as error:
        raise SchemaError(f"{path}: a type lacks its {error} attribute") from error
    except (SchemaParseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SchemaError(f"{path}: not an Avro schema: {_line(error)}") from error
    return parsed


def _encoder(path: Path, parsed: dict[str, Any]) -> Encoder:
    try:
        return Encoder(parsed)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SchemaError(f"{path}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """An error of a library on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
