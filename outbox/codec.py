"""Events to bytes and back: strict on the way in, at the newest version on the way out.

The bytes are Avro's single-object encoding (Avro 1.12 specification, "Single-object encoding"): ``C3 01``,
the eight-byte little-endian CRC-64-AVRO fingerprint of the writer's schema, and the body. So what was
written says which schema it was written with, the same on every machine, with no registry to ask.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from fastavro import schemaless_reader

import schemas
from outbox import compatibility, schema
from outbox.depth import check_depth
from outbox.errors import InvalidEvent, SchemaError, UnknownEventType
from outbox.refusal import Refusal
from outbox.schema import HEADER_BYTES, MARKER, SchemaVersion

SIZE_MAX: Final = 16 * 1024 * 1024
"""Bytes of one encoded event. PostgreSQL and Kafka could take more; readers that keep a batch in memory could not."""

Upcaster = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Takes one version's data and returns the next version's; pure, and free to change its argument."""

_WHERE: Final = (
    "is its folder among the schemas of the settings? (append knows the built-in ones alone, unless it is given a"
    " registry)"
)
_UNREADABLE: Final = (
    EOFError,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    ArithmeticError,
    MemoryError,
)
"""What fastavro raises on bytes that are not what the schema says."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """How bytes of one version are read: up to version ``target`` by Avro, from there on by upcasters."""

    writer: SchemaVersion
    reader: SchemaVersion | None
    """None: as they were written, which is fastavro's fast path."""
    target: int
    """Version of the data that this reading gives."""
    newest: bool
    """Whether that is the type's newest one."""


class Registry:
    """The schemas of all event types. Safe to share between threads; fixed once loaded, upcasters aside."""

    def __init__(self, types: Mapping[str, tuple[SchemaVersion, ...]], size_max: int = SIZE_MAX) -> None:
        self._types = dict(types)
        self._size_max = size_max
        self._writers = {name: (v[-1].encoder, v[-1].header) for name, v in self._types.items()}
        self._upcasters: dict[str, dict[int, Upcaster]] = {name: {} for name in self._types}
        self._readings = {name: self._plan(name) for name in self._types}

    @classmethod
    def load(cls, *folders: Path, size_max: int = SIZE_MAX) -> Registry:
        """The built-in schemas and those of ``folders``; an encoded event may have ``size_max`` bytes.

        Raises :class:`~outbox.errors.SchemaError`, naming the file, the field and what to do, if a file
        is malformed, a version is missing or cannot read its forerunners, or two folders define one type.
        """
        types = schema.load([schemas.FOLDER, *folders])
        for versions in types.values():
            compatibility.check(versions)
        return cls(types, size_max)

    def check(self) -> list[SchemaVersion]:
        """Every version of every type, ordered by type and version."""
        return [version for _, versions in sorted(self._types.items()) for version in versions]

    def encode(self, type: str, data: Mapping[str, Any]) -> bytes:  # noqa: A002
        """The data as bytes, written with the type's newest version; defaults are filled in.

        Raises :class:`~outbox.errors.UnknownEventType`, or :class:`~outbox.errors.InvalidEvent` whose
        ``field`` is the path of the first value that is missing, not in the schema, not exactly of its
        type, or something that a store could not hold (NUL, NaN, infinity, a lone surrogate), or None if
        it is the event as a whole (not a mapping, too large).
        """
        try:
            encoder, header = self._writers[type]
        except KeyError:
            raise self._unknown(type) from None
        try:
            return encoder.encode(data, header, self._size_max)
        except Refusal as refusal:
            raise _invalid(type, refusal) from refusal.__cause__

    def decode(self, type: str, data: bytes) -> dict[str, Any]:  # noqa: A002
        """The bytes as the type's newest version has them, by Avro's schema resolution and by upcasters.

        Raises :class:`~outbox.errors.UnknownEventType` for a type or a schema id nobody here knows, and
        :class:`~outbox.errors.InvalidEvent` for bytes that are truncated, corrupt or carry a wrong upcast.
        """
        try:
            readings = self._readings[type]
        except KeyError:
            raise self._unknown(type) from None
        reading = readings.get(data[:HEADER_BYTES])
        if reading is None:
            raise self._unreadable(type, data)
        value = _read(type, reading, data)
        return value if reading.newest else self._carry(type, value, reading.target)

    def upcaster(self, type: str, from_version: int) -> Callable[[Upcaster], Upcaster]:  # noqa: A002
        """Register a function (or decorate one) that carries data of ``from_version`` to the next version.

        It is used instead of Avro's resolution for that step. Register before reading begins. Raises
        :class:`~outbox.errors.SchemaError` if there is no such step, or if it has an upcaster already.
        """
        if type not in self._types:
            raise self._unknown(type)
        if not 1 <= from_version < len(self._types[type]):
            raise SchemaError(
                f"upcaster of {type} from version {from_version}: there is no version {from_version} with a next one "
                f"(the newest is {len(self._types[type])})"
            )

        def register(function: Upcaster) -> Upcaster:
            if from_version in self._upcasters[type]:
                raise SchemaError(f"upcaster of {type} from version {from_version}: there is one already")
            self._upcasters[type] = {**self._upcasters[type], from_version: function}
            self._readings[type] = self._plan(type)
            return function

        return register

    def _plan(self, name: str) -> dict[bytes, _Reading]:
        """How to read each version of a type, by the header its bytes begin with."""
        return {version.header: self._reading(version) for version in self._types[name]}

    def _reading(self, writer: SchemaVersion) -> _Reading:
        versions = self._types[writer.type]
        steps = self._upcasters[writer.type]
        target = next((n for n in range(writer.version, len(versions)) if n in steps), len(versions))
        reader = None if target == writer.version else versions[target - 1]
        return _Reading(writer, reader, target, target == len(versions))

    def _carry(self, name: str, value: dict[str, Any], version: int) -> dict[str, Any]:
        """Data of ``version`` brought to the newest one, and checked against it."""
        versions = self._types[name]
        carried: Mapping[str, Any] = value
        while version < len(versions):
            carried = self._upcast(name, dict(carried), version)
            version += 1
            reading = self._reading(versions[version - 1])
            carried = _rewritten(name, reading, carried, self._size_max)
            version = reading.target
        return dict(carried)

    def _upcast(self, name: str, value: dict[str, Any], version: int) -> Mapping[str, Any]:
        try:
            return self._upcasters[name][version](value)
        except Exception as error:
            raise InvalidEvent(f"{name}: the upcaster from version {version} failed: {error!r}") from error

    def _unknown(self, name: str) -> UnknownEventType:
        near = difflib.get_close_matches(str(name), self._types, n=3)
        advice = f"did you mean {' or '.join(near)}?" if near else _WHERE
        return UnknownEventType(f"no schema for event type {str(name)[:100]!r}: {advice}")

    def _unreadable(self, name: str, data: bytes) -> InvalidEvent:
        if len(data) < HEADER_BYTES or data[: len(MARKER)] != MARKER:
            return InvalidEvent(f"{name}: {len(data)} bytes that are not in Avro's single-object encoding")
        return UnknownEventType(
            f"{name}: no version has schema id {data[2:HEADER_BYTES][::-1].hex()}: a newer producer wrote this; "
            "deploy its schema here first"
        )


@cache
def default_registry() -> Registry:
    """The built-in schemas alone, loaded once: what an append without a ``registry`` uses."""
    return Registry.load()


def _read(name: str, reading: _Reading, data: bytes) -> dict[str, Any]:
    if reading.writer.encoder.recursive:
        _bounded(name, reading, data)
    body = BytesIO(data)
    body.seek(HEADER_BYTES)
    try:
        value: dict[str, Any] = schemaless_reader(
            body, reading.writer.parsed, None if reading.reader is None else reading.reader.parsed
        )
    except _UNREADABLE as error:
        raise InvalidEvent(f"{name}: truncated or corrupt bytes ({_version(reading)}): {error!r:.200}") from error
    if body.tell() != len(data):
        raise InvalidEvent(f"{name}: corrupt bytes ({_version(reading)}): {len(data) - body.tell()} left over")
    return value


def _bounded(name: str, reading: _Reading, data: bytes) -> None:
    try:
        check_depth(reading.writer.parsed, data, HEADER_BYTES)
    except Refusal as refusal:
        raise InvalidEvent(f"{name}: corrupt bytes ({_version(reading)}): they {refusal.reason}") from None


def _rewritten(name: str, reading: _Reading, data: Mapping[str, Any], size_max: int) -> dict[str, Any]:
    """An upcaster's result checked against its version, with that version's defaults, read onwards."""
    try:
        coded = reading.writer.encoder.encode(data, reading.writer.header, size_max)
    except Refusal as refusal:
        raise _invalid(f"{name}: the upcaster to version {reading.writer.version} gave", refusal) from refusal.__cause__
    return _read(name, reading, coded)


def _invalid(prefix: str, refusal: Refusal) -> InvalidEvent:
    return InvalidEvent(f"{prefix}: {refusal.field or 'the data'} {refusal.reason}", refusal.field)


def _version(reading: _Reading) -> str:
    return f"version {reading.writer.version}"
