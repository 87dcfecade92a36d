"""The Avro schema derived from a table, as its description states it: one optional field a column.

Every field is nullable with the default null. So the schema of a table before ALTER TABLE and the one after it can
read each other's rows whenever a column was added or dropped (Avro 1.12 specification, "Schema Resolution").
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def avro(category: str, columns: Sequence[tuple[str, str]], types: Sequence[Any]) -> str:
    """The schema as JSON. ``columns`` are names and PostgreSQL types, ``types`` the Avro schemas of their values.

    A column whose name Avro does not take has a field named ``_x`` and its UTF-8 in hexadecimal digits, and its own
    name as ``column``.
    """
    fields = [_field(*column, type_) for column, type_ in zip(columns, types, strict=True)]
    namespace, _, name = f"outbox.captured.{_plain(category)}".rpartition(".")
    return json.dumps({"type": "record", "name": name, "namespace": namespace, "fields": fields}, ensure_ascii=False)


def _field(name: str, type_name: str, type_: Any) -> dict[str, Any]:
    branches = ["null", *(type_ if isinstance(type_, list) else [type_])]
    field = {"name": name, "type": branches, "default": None, "doc": type_name}
    return field if _NAME.fullmatch(name) else {**field, "name": f"_x{name.encode().hex()}", "column": name}


def _plain(category: str) -> str:
    return ".".join(part if _NAME.fullmatch(part) else f"_{part}" for part in category.split(".") if part)
