"""What a schema says about the depth and the size of its values, before there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DEPTH_MAX: Final = 64
"""Arrays, maps and records inside one another. Stores and readers recurse; none of ours needs more."""


def takes_no_bytes(schema: Any, named: Mapping[str, Any]) -> bool:
    """Whether every value of the schema is encoded as nothing: null, no-byte fixed, records of only those."""
    schema = named.get(schema, schema) if isinstance(schema, str) else schema
    if not isinstance(schema, dict):
        return bool(schema == "null")
    if schema["type"] == "record":
        # A record not parsed to its end yet contains this array, and an array takes a byte.
        return "fields" in schema and all(takes_no_bytes(field["type"], named) for field in schema["fields"])
    return schema["type"] == "null" or schema.get("size") == 0


def recursive(schema: Any) -> bool:
    """Whether a record of the schema contains itself, directly or through others."""
    return _recursive(schema, frozenset())


def _recursive(schema: Any, inside: frozenset[str]) -> bool:
    if isinstance(schema, str):
        return schema in inside
    if isinstance(schema, list):
        return any(_recursive(branch, inside) for branch in schema)
    inside = inside | {schema["name"]} if "name" in schema else inside
    children = [schema[part] for part in ("items", "values") if part in schema]
    children += [field["type"] for field in schema.get("fields", ())]
    return any(_recursive(child, inside) for child in children)
