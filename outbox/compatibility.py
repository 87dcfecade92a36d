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
        raise SchemaError(_explained(old, new, result))


def _explained(old: SchemaVersion, new: SchemaVersion, result: Any) -> str:
    where = ", ".join(sorted(_field(new.source, location) for location in result.locations))
    kind = result.incompatibilities[0].value
    return (
        f"{new.path}: cannot read what {old.path.name} wrote: {where}: {kind.replace('_', ' ')} "
        f"({'; '.join(sorted(result.messages))}): {_ADVICE.get(kind, _ADVICE_ELSE)}"
    )


_ADVICE = {
    "reader_field_missing_default_value": "give the new field a default, or its old name as an alias if it was renamed",
    "missing_enum_symbols": "keep the old symbols, or give the enum a default",
    "missing_union_branch": "keep the union's old branches",
    "name_mismatch": "keep the name, or give the old full name as an alias",
}
_ADVICE_ELSE = "keep the old type (int may become long, float or double), or make this a new event type"


def _field(schema: Any, location: str) -> str:
    """``/fields/2/type/items`` as a field's path, ``links[]``."""
    path = ""
    for step in location.strip("/").split("/"):
        schema, path = _inner(schema, step, path)
    return f"field {path.removeprefix('.')}" if path else "the record"


def _inner(schema: Any, step: str, path: str) -> tuple[Any, str]:
    if isinstance(schema, dict) and step in schema:
        return schema[step], path + ("[]" if step in ("items", "values") else "")
    if isinstance(schema, list) and step.isdigit() and int(step) < len(schema):
        name = schema[int(step)]["name"] if isinstance(schema[int(step)], dict) and "type" in schema[int(step)] else ""
        return schema[int(step)], f"{path}.{name}" if name else path
    return schema, path
