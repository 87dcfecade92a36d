"""Whether a new version of a schema can read what an older one wrote.

The rules are those of the Avro 1.12 specification, "Schema Resolution"; the check is the ``avro``
package's, which follows Avro's Java ``SchemaCompatibility``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from outbox.errors import SchemaError
from outbox.schema import SchemaVersion


def check(versions: Sequence[SchemaVersion]) -> None:
    """Raise SchemaError unless every version can read all older ones. ``versions`` are of one type, in order."""
    for old, new in combinations(versions, 2):
        _check_names(old, new)
        _check_pair(old, new)


def _check_names(old: SchemaVersion, new: SchemaVersion) -> None:
    if new.name != old.name:
        raise SchemaError(
            f"{new.path}: the record is called {new.name}, but {old.name} in {old.path.name}: keep the name"
        )
    if new.fingerprint == old.fingerprint:
        raise SchemaError(
            f"{new.path}: differs from {old.path.name} only in docs, defaults, aliases or logical types, which Avro's "
            f"schema id leaves out: make that change in {old.path.name}"
        )


def _check_pair(old: SchemaVersion, new: SchemaVersion) -> None:
    # Imported here: it takes longer to import than all of this package, and most types have one version.
    from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
    from avro.errors import AvroException
    from avro.schema import parse

    try:
        reader, writer = (parse(json.dumps(schema.source)) for schema in (new, old))
        result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    except AvroException as error:
        raise SchemaError(f"{new.path}: not an Avro schema: {' '.join(str(error).split())[:300]}") from error
    if result.compatibility is not SchemaCompatibilityType.compatible:
        raise SchemaError(_explained(old, new, _unreadable_fields(reader, writer), result))


def _unreadable_fields(reader: Any, writer: Any) -> list[str]:
    """The event's fields that stand in the way, each with the path inside it where that is known."""
    from avro.compatibility import (
        ReaderWriterCompatibilityChecker,
        SchemaCompatibilityType,
        lookup_writer_field,
    )

    found: list[str] = []
    for field in reader.fields:
        written = lookup_writer_field(writer, field)
        if written is None:
            found += [] if field.has_default else [field.name]
            continue
        result = ReaderWriterCompatibilityChecker().get_compatibility(field.type, written.type)
        if result.compatibility is not SchemaCompatibilityType.compatible:
            found += sorted({_path(field.name, field.type.to_json(), location) for location in result.locations})
    return found


def _explained(old: SchemaVersion, new: SchemaVersion, fields: Sequence[str], result: Any) -> str:
    kind = result.incompatibilities[0].value
    return (
        f"{new.path}: cannot read what {old.path.name} wrote: field {', '.join(fields) or '(the record itself)'}: "
        f"{kind.replace('_', ' ')} ({'; '.join(sorted(result.messages))}): {_ADVICE.get(kind, _ADVICE_ELSE)}"
    )


_ADVICE = {
    "reader_field_missing_default_value": "give the new field a default, or its old name as an alias if it was renamed",
    "missing_enum_symbols": "keep the old symbols, or give the enum a default",
    "missing_union_branch": "keep the union's old branches",
    "name_mismatch": "keep the name, or give the old full name as an alias",
}
_ADVICE_ELSE = "keep the old type (int may become long, float or double), or make this a new event type"


def _path(name: str, schema: Any, location: str) -> str:
    """``/items/fields/2/type`` inside field ``links`` as ``links[].target``.

    The checker forgets where it is inside a union, so there the field's name must do.
    """
    if _has_union(schema):
        return name
    for step in location.strip("/").split("/"):
        if isinstance(schema, dict) and step in schema:
            name += "[]" if step in ("items", "values") else ""
            schema = schema[step]
        elif isinstance(schema, list) and step.isdigit():
            schema = schema[int(step)]
            name += f".{schema['name']}" if isinstance(schema, dict) else ""
    return name


def _has_union(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return isinstance(schema, list)
    inner = [schema[part] for part in ("type", "items", "values") if part in schema]
    return any(map(_has_union, inner + [field["type"] for field in schema.get("fields", ())]))
