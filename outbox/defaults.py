"""A field's default as a schema file states it (JSON) and as an event's data would hold it (Python).

Avro 1.12 specification, "Complex Types", the table of default values: bytes and fixed are written as
text whose characters 0-255 are the bytes; a union's default belongs to the first branch that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastavro.read import LOGICAL_READERS

from outbox.scalars import is_logical

Named = Mapping[str, Any]
"""The named types of one schema file, by full name."""


def readings(schema: Any, default: Any, named: Named) -> Iterator[Any]:
    """What the default may stand for, best first; none if it cannot be of the schema's type at all."""
    if isinstance(schema, list):
        for branch in schema:
            yield from readings(branch, default, named)
    elif isinstance(schema, str) and schema in named:
        yield from readings(named[schema], default, named)
    elif isinstance(schema, str):
        yield from _plain({"type": schema}, default, named)
    else:
        for value in _plain(schema, default, named):
            yield _restored(schema, value)


def _plain(schema: Mapping[str, Any], default: Any, named: Named) -> Iterator[Any]:
    match schema["type"], default:
        case (("bytes" | "fixed"), str()):
            if all(ord(character) < 256 for character in default):
                yield default.encode("latin-1")
        case "array", list():
            yield [_first(schema["items"], item, named) for item in default]
        case "map", dict():
            yield {key: _first(schema["values"], item, named) for key, item in default.items()}
        case "record", dict():
            types = {field["name"]: field["type"] for field in schema["fields"]}
            yield {key: _first(types[key], item, named) if key in types else item for key, item in default.items()}
        case (("bytes" | "fixed" | "array" | "map" | "record"), _):
            return
        case _:
            yield default


def _first(schema: Any, default: Any, named: Named) -> Any:
    return next(readings(schema, default, named), default)


def _restored(schema: Mapping[str, Any], value: Any) -> Any:
    if not is_logical(schema):
        return value
    return LOGICAL_READERS[f"{schema['type']}-{schema['logicalType']}"](value, schema, schema)
