"""Avro's binary encoding, strict: a schema is compiled once into one closure per node.

What is plain and as the schema has it goes by :mod:`outbox.generated`, which is quicker and gives up at anything else.

A general Avro writer guesses: it takes ``True`` for a long, ``"1"`` for a double, drops fields the
schema does not have and writes NaN. Here everything a reader would get back differently, or a store
could not hold, is refused with the path to it. Format: Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from outbox.compound import array, deeper, map_of, record, too_large, union
from outbox.defaults import Named, readings
from outbox.generated import Generator, Quick, give_up
from outbox.refusal import Refusal
from outbox.scalars import (
    PRIMITIVES,
    Output,
    Write,
    enum,
    fixed,
    is_logical,
    logical,
    zigzag,
)
from outbox.shape import DEPTH_MAX, recursive, takes_no_bytes

DEFAULT_MAX: Final = 1 << 20
"""Bytes of one encoded default; it is kept in memory for good."""


class Encoder:
    """Compiles one parsed schema (fastavro's form, in which every name is full) into closures.

    Raises ValueError for a schema that could not be read back safely.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._types: Named = schema.get("__named_schemas", {})
        self._schema = schema
        self._quick: Quick | None = None
        self._named: dict[str, Write] = {}
        self._plans: dict[str, list[tuple[str, Write, bytes | None]]] = {}
        self._kinds: dict[str, str] = {}
        self._defaults: list[Callable[[], None]] = []
        self.recursive = recursive(schema)
        """Whether a record of the schema can contain itself, so that only the data bound its depth."""
        self.write = self._compile(schema, 0)
        for fill in self._defaults:
            fill()

    def encode(self, value: Any, prefix: bytes, size_max: int) -> bytes:
        """``prefix`` and the encoding of ``value``. Raises :class:`~outbox.refusal.Refusal`."""
        if not self.recursive:
            quick = self._quick or self._generate()
            quickly = bytearray(prefix)
            try:
                quick(value, quickly, size_max)
            except Exception:  # noqa: BLE001  # for whatever reason: what follows takes the value or says why not
                pass
            else:
                if len(quickly) <= size_max:
                    return bytes(quickly)
        return self.encode_strictly(value, prefix, size_max)

    def encode_strictly(self, value: Any, prefix: bytes, size_max: int) -> bytes:
        """The same by the strict writers alone, which :meth:`encode` asks when the quick one has given up."""
        out = Output(prefix, size_max)
        self.write(value, out)
        if len(out) > size_max:
            raise too_large(out)
        return bytes(out)

    def _generate(self) -> Quick:
        """Done at the first event, not at the start: most processes write a few of the types, if any."""
        strict = partial(self._compile, depth=0)
        try:
            self._quick = Generator(self._types, strict, self._plans).function(self._schema)
        except SyntaxError:  # arrays and maps may nest deeper than Python's own blocks
            self._quick = give_up
        return self._quick

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
        plan = self._plans[schema["name"]] = []
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


def _label(branch: Any) -> str:
    if isinstance(branch, str):
        return branch
    return str(branch.get("logicalType") or branch.get("name") or branch["type"])
