"""Avro's binary encoding, strict: a schema is compiled once into one closure per node.

A general Avro writer guesses: it takes ``True`` for a long, ``"1"`` for a double, drops fields the
schema does not have and writes NaN. Here everything a reader would get back differently, or a store
could not hold, is refused with the path to it. Format: Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from outbox.defaults import Named, readings
from outbox.refusal import Refusal
from outbox.scalars import (
    PRIMITIVES,
    SMALL,
    SMALL_CODED,
    Output,
    Write,
    enum,
    fixed,
    is_logical,
    logical,
    mismatch,
    zigzag,
)
from outbox.shape import DEPTH_MAX, recursive, takes_no_bytes

DEFAULT_MAX: Final = 1 << 20
"""Bytes of one encoded default; it is kept in memory for good."""

_TAKES: Final[Mapping[str, tuple[type, ...]]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "double": (float,),
    "float": (float,),
    "string": (str,),
    "enum": (str,),
    "bytes": (bytes,),
    "fixed": (bytes,),
    "array": (list, tuple),
    "map": (dict,),
    "record": (dict,),
}


class Encoder:
    """Compiles one parsed schema (fastavro's form, in which every name is full) into closures.

    Raises ValueError for a schema that could not be read back safely.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._types: Named = schema.get("__named_schemas", {})
        self._named: dict[str, Write] = {}
        self._kinds: dict[str, str] = {}
        self._defaults: list[Callable[[], None]] = []
        self.recursive = recursive(schema)
        """Whether a record of the schema can contain itself, so that only the data bound its depth."""
        self.write = self._compile(schema, 0)
        for fill in self._defaults:
            fill()

    def encode(self, value: Any, prefix: bytes, size_max: int) -> bytes:
        """``prefix`` and the encoding of ``value``. Raises :class:`~outbox.refusal.Refusal`."""
        out = Output(prefix, size_max)
        self.write(value, out)
        if len(out) > size_max:
            raise too_large(out)
        return bytes(out)

    def _compile(self, schema: Any, depth: int) -> Write:
        if isinstance(schema, list):
            return self._union(schema, depth)
        if isinstance(schema, str):
            return PRIMITIVES.get(schema) or self._reference(schema)
        write = self._complex(schema, depth)
        if is_logical(schema):
            write = logical(schema, write)
        if "name" in schema:
            self._named[schema["name"]] = write
            self._kinds[schema["name"]] = schema["type"]
        return write

    def _reference(self, name: str) -> Write:
        if name in self._named:
            return self._named[name]
        named = self._named

        def write(value: Any, out: Output) -> None:
            named[name](value, out)  # not compiled yet: the type contains itself

        return write

    def _complex(self, schema: Mapping[str, Any], depth: int) -> Write:
        match schema["type"]:
            case "array":
                if takes_no_bytes(schema["items"], self._types):
                    raise ValueError("items of an array take no bytes: a corrupt count of them could not be noticed")
                return self._nested(array(self._compile(schema["items"], depth + 1)), depth)
            case "map":
                return self._nested(map_of(self._compile(schema["values"], depth + 1)), depth)
            case "record":
                return self._nested(self._record(schema, depth), depth)
            case "enum":
                return enum(schema["symbols"])
            case "fixed":
                return fixed(schema["size"])
            case kind if kind in PRIMITIVES:
                return PRIMITIVES[kind]
            case kind:
                raise ValueError(f"type {kind!r} cannot be used in an event")

    def _nested(self, write: Write, depth: int) -> Write:
        if depth >= DEPTH_MAX:
            raise ValueError(f"the schema nests deeper than {DEPTH_MAX} levels")
        return deeper(write) if self.recursive else write

    def _record(self, schema: Mapping[str, Any], depth: int) -> Write:
        self._kinds[schema["name"]] = "record"
        plan: list[tuple[str, Write, bytes | None]] = []
        for field in schema["fields"]:
            plan.append((field["name"], self._compile(field["type"], depth + 1), None))
            if "default" in field:
                self._defaults.append(partial(fill_default, plan, len(plan) - 1, field, self._types))
        return record(schema["name"], plan)

    def _union(self, branches: list[Any], depth: int) -> Write:
        kinds = [self._kind(branch) for branch in branches]
        writes = [(zigzag(i), self._compile(branch, depth)) for i, branch in enumerate(branches)]
        return union(kinds, [_label(branch) for branch in branches], writes)

    def _kind(self, branch: Any) -> str:
        """The branch's type; "" for a logical one, whose Python types are the logical reader's affair."""
        if isinstance(branch, str):
            return self._kinds.get(branch, branch)
        return "" if is_logical(branch) else str(branch["type"])


def record(name: str, plan: Sequence[tuple[str, Write, bytes | None]]) -> Write:
    """``plan`` has each field's name, writer and encoded default, in the schema's order; it may be filled later."""

    def write(value: Any, out: Output) -> None:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise mismatch(f"a mapping for record {name}", value)
        found = 0
        field = ""
        try:
            for field, write_field, default in plan:
                if field in value:
                    found += 1
                    write_field(value[field], out)
                elif default is None:
                    raise Refusal("is missing and has no default")
                else:
                    out += default
        except Refusal as refusal:
            raise refusal.at(field) from refusal.__cause__
        if found != len(value):
            raise _unknown_field(name, value, [field for field, _, _ in plan])

    return write


def _unknown_field(name: str, value: Mapping[Any, Any], fields: Sequence[str]) -> Refusal:
    extra = next(key for key in value if key not in fields)
    known = ", ".join(fields[:12]) + (", ..." if len(fields) > 12 else "")
    return Refusal(f"is not a field of {name}, which has {known or 'none'}").at(extra)


def array(write_item: Write) -> Write:
    """One block of items, then the end mark."""

    def write(value: Any, out: Output) -> None:
        if type(value) is not list and not isinstance(value, list | tuple):
            raise mismatch("array (a list)", value)
        count = len(value)
        if count:
            out += SMALL_CODED[count] if count < SMALL else zigzag(count)
            index = 0
            try:
                for index, item in enumerate(value):  # noqa: B007
                    write_item(item, out)
            except Refusal as refusal:
                raise refusal.at(index) from refusal.__cause__
            if len(out) > out.size_max:
                raise too_large(out)
        out += b"\x00"

    return write


def map_of(write_value: Write) -> Write:
    """One block of keys and values, then the end mark."""
    write_key = PRIMITIVES["string"]

    def write(value: Any, out: Output) -> None:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise mismatch("map (a dict)", value)
        count = len(value)
        if count:
            out += SMALL_CODED[count] if count < SMALL else zigzag(count)
            key: Any = ""
            try:
                for key, item in value.items():
                    write_key(key, out)
                    write_value(item, out)
            except Refusal as refusal:
                raise refusal.at(key) from refusal.__cause__
            if len(out) > out.size_max:
                raise too_large(out)
        out += b"\x00"

    return write


def union(kinds: Sequence[str], labels: Sequence[str], writes: Sequence[tuple[bytes, Write]]) -> Write:
    """The branch is chosen by the value's Python type; where several may fit, the first that takes it."""
    table = _dispatch(kinds, writes)
    expected = ", ".join(labels)

    def write(value: Any, out: Output) -> None:
        candidates = table.get(type(value), writes)
        if len(candidates) == 1:
            mark, write_branch = candidates[0]
            out += mark
            write_branch(value, out)
        else:
            first_fit(candidates, expected, value, out)

    return write


def _dispatch(kinds: Sequence[str], writes: Sequence[tuple[bytes, Write]]) -> dict[type, Sequence[tuple[bytes, Write]]]:
    table: dict[type, list[tuple[bytes, Write]]] = {}
    # A double before a float, so that no precision is lost to the order of the branches.
    for kind, entry in sorted(zip(kinds, writes, strict=True), key=lambda pair: pair[0] == "float"):
        for taken in _TAKES.get(kind, ()):
            table.setdefault(taken, []).append(entry)
    if int not in table and float in table:
        table[int] = table[float]
    return dict(table)


def first_fit(candidates: Sequence[tuple[bytes, Write]], expected: str, value: Any, out: Output) -> None:
    """Write with the first branch that takes the value; if none does, raise what came furthest into it."""
    start, depth = len(out), out.depth
    furthest: Refusal | None = None
    for mark, write in candidates:
        try:
            out += mark
            write(value, out)
        except Refusal as refusal:
            del out[start:]
            out.depth = depth
            if refusal.depth and (furthest is None or refusal.depth > furthest.depth):
                furthest = refusal
        else:
            return
    raise furthest or mismatch(f"one of {expected}", value)


def deeper(write: Write) -> Write:
    """Counts the levels, where the schema itself does not bound them."""

    def write_deeper(value: Any, out: Output) -> None:
        if out.depth >= DEPTH_MAX:
            raise Refusal(f"is nested deeper than {DEPTH_MAX} levels")
        out.depth += 1
        write(value, out)
        out.depth -= 1

    return write_deeper


def fill_default(
    plan: list[tuple[str, Write, bytes | None]], index: int, field: Mapping[str, Any], named: Named
) -> None:
    """Encode a field's default, once. Raises ValueError if it is not of the field's type."""
    name, write, _ = plan[index]
    reason = f"field {name!r}: its default is not of its type"
    for value in readings(field["type"], field["default"], named):
        out = Output(b"", DEFAULT_MAX)
        try:
            write(value, out)
        except Refusal as refusal:
            reason = f"field {name!r}: its default {refusal.reason}"
        else:
            plan[index] = (name, write, bytes(out))
            return
    raise ValueError(reason)


def too_large(out: Output) -> Refusal:
    """The refusal of data that have outgrown the limit."""
    return Refusal(
        f"is larger than {out.size_max:,} bytes when encoded: keep large content elsewhere, and its key here"
    )


def _label(branch: Any) -> str:
    if isinstance(branch, str):
        return branch
    return str(branch.get("logicalType") or branch.get("name") or branch["type"])
