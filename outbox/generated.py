"""One Python function per record of a schema, written out and compiled: the quick way through the encoder.

The strict encoder calls a closure per node. What is written here has all of a record's fields in one body, as
dataclasses have their ``__init__``, and takes half the time. It is quick because it knows the usual alone: a plain
``dict``, ``list``, ``str``, ... exactly as the schema has it. At anything else it gives up, whatever the reason,
and the strict encoder has the last word: it takes the value after all, or says why not. So no rule is relaxed here,
and no message is written twice.

The code holds names of its own making only; whatever comes from a schema is a constant beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from outbox.scalars import PRIMITIVES, SMALL, SMALL_CODED, Output, Write, is_logical, write_string, zigzag

Quick = Callable[[Any, bytearray, int], None]
"""Appends the encoding of a value to bytes that may become so many; raises any exception if it will not."""

Plan = Sequence[tuple[str, Write, bytes | None]]
"""Of each field of a record: its name, its strict writer and its encoded default."""

KEYS_MAX: Final = 1_024
KEY_LENGTH_MAX: Final = 64
"""So many of the maps' keys, none longer than this, are kept as they are written: most maps have the same few."""

_TYPES: Final[Mapping[str, str]] = {
    "string": "str",
    "enum": "str",
    "long": "int",
    "int": "int",
    "double": "float",
    "float": "float",
    "boolean": "bool",
    "null": "NoneType",
    "array": "list",
    "map": "dict",
    "record": "dict",
    "bytes": "bytes",
    "fixed": "bytes",
}
"""The Python type of each Avro type, those first for which a union should be asked first."""


class GivenUpError(Exception):
    """What was given is not the usual."""


def give_up(*_: object) -> None:
    """What takes no value: all are left to the strict encoder."""
    raise GivenUpError


class Generator:
    """Writes the functions for the records of one parsed schema (fastavro's form) that does not contain itself.

    ``strict`` gives the strict writer of what is no record, array, map or union; ``plans`` has each record's fields
    by its full name.
    """

    def __init__(self, named: Mapping[str, Any], strict: Callable[[Any], Write], plans: Mapping[str, Plan]) -> None:
        self._named = named
        self._strict = strict
        self._plans = plans
        self._records: dict[str, str] = {}
        self._lines: list[str] = []
        self._names = 0
        self._scope: dict[str, Any] = {
            "CODED": SMALL_CODED,
            "GivenUpError": GivenUpError,
            "KEYS": _Keys(),
            "MISSING": object(),
            "NoneType": NoneType,
            "zigzag": zigzag,
        }

    def function(self, schema: Mapping[str, Any]) -> Quick:
        """The function that writes the record ``schema``."""
        name = self._record(schema)
        exec("\n".join(self._lines), self._scope)  # no name in it is anybody else's
        quick: Quick = self._scope[name]
        return quick

    def _record(self, schema: Mapping[str, Any]) -> str:
        """Write the function of a record, behind those of the records in it, and give its name."""
        full = schema["name"]
        if full not in self._records:
            name, fields = self._new("record"), schema["fields"]
            lines = [f"def {name}(value, out, size_max):"]
            lines += _in(["if type(value) is not dict: raise GivenUpError", "found = len(value)"])
            for field, (_, _, default) in zip(fields, self._plans[full], strict=True):
                lines += _in(self._field(field, default))
            lines += _in([f"if found != {len(fields)}: raise GivenUpError"])
            self._records[full] = name
            self._lines += lines
        return self._records[full]

    def _field(self, field: Mapping[str, Any], default: bytes | None) -> list[str]:
        item, key = self._new("item"), self._constant(field["name"])
        if default is None:
            return [f"{item} = value[{key}]", *self._value(field["type"], item)]
        return [
            f"{item} = value.get({key}, MISSING)",
            f"if {item} is MISSING:",
            "    found += 1",
            f"    out += {self._constant(default)}",
            "else:",
            *_in(self._value(field["type"], item)),
        ]

    def _value(self, schema: Any, item: str) -> list[str]:
        """The lines that append ``item`` if it is of the type."""
        schema = self._resolved(schema)
        if isinstance(schema, list):
            return self._union(schema, item)
        if (
            _type(schema) in {None, "float", "bytes"} or _kind(schema) == "enum"
        ):  # strict in every way, or whole for double
            return self._strictly(schema, item)
        return [f"if type({item}) is not {_type(schema)}: raise GivenUpError", *self._typed(schema, item)]

    def _typed(self, schema: Any, item: str) -> list[str]:
        """The same for an item that is of the Python type."""
        match _kind(schema):
            case "null":
                lines = []
            case "boolean":
                lines = [f"out += b'\\x01' if {item} else b'\\x00'"]
            case "long" | "int" as kind:
                write = self._constant(PRIMITIVES[kind])
                lines = [f"if 0 <= {item} < {SMALL}: out += CODED[{item}]", f"else: {write}({item}, out)"]
            case "string":
                coded = self._new("coded")
                lines = [f"if '\\0' in {item}: raise GivenUpError", f"{coded} = {item}.encode()"]
                lines += [*self._count(coded), f"out += {coded}"]
            case "array":
                each = self._new("each")
                lines = self._block(item, [f"for {each} in {item}:", *_in(self._value(schema["items"], each))])
            case "map":
                each, key = self._new("each"), self._new("key")
                inside = [f"out += KEYS[{key}]", *self._value(schema["values"], each)]
                lines = self._block(item, [f"for {key}, {each} in {item}.items():", *_in(inside)])
            case "record":
                lines = [f"{self._record(schema)}({item}, out, size_max)"]
            case _:
                lines = self._strictly(schema, item)
        return lines

    def _strictly(self, schema: Any, item: str) -> list[str]:
        return [f"{self._constant(self._strict(schema))}({item}, out)"]

    def _block(self, item: str, loop: list[str]) -> list[str]:
        """An array or a map: one block of all there is, and the end mark."""
        inside = [*self._count(item), *loop, "if len(out) > size_max: raise GivenUpError"]
        return [f"if {item}:", *_in(inside), "out += b'\\0'"]

    def _count(self, counted: str) -> list[str]:
        length = self._new("length")
        return [f"{length} = len({counted})", f"out += CODED[{length}] if {length} < {SMALL} else zigzag({length})"]

    def _union(self, branches: list[Any], item: str) -> list[str]:
        """The branch is chosen by the item's type. Where two would do, the choice is left to the strict encoder."""
        branches = [self._resolved(branch) for branch in branches]
        types = [_type(branch) for branch in branches]
        word, lines = "if", [f"kind = type({item})"]
        for known in dict.fromkeys(_TYPES.values()):
            if types.count(known) == 1:
                place = types.index(known)
                lines.append(f"{word} kind is {known}:")
                lines += _in([f"out += {zigzag(place)!r}", *self._typed(branches[place], item)])
                word = "elif"
        if len(branches) == 2 and set(types) == {None, "NoneType"}:  # whatever else the type is, if it is one at all
            place = types.index(None)
            return [*lines, "else:", *_in([f"out += {zigzag(place)!r}", *self._strictly(branches[place], item)])]
        return [*lines, "else: raise GivenUpError" if word == "elif" else "raise GivenUpError"]

    def _resolved(self, schema: Any) -> Any:
        """The schema that a name stands for."""
        return self._named.get(schema, schema) if isinstance(schema, str) else schema

    def _constant(self, value: Any) -> str:
        name = self._new("constant")
        self._scope[name] = value
        return name

    def _new(self, word: str) -> str:
        self._names += 1
        return f"{word}_{self._names}"


class _Keys(dict[str, bytes]):
    """Keys of maps as they are written."""

    def __missing__(self, key: str) -> bytes:
        out = Output(b"", 0)
        write_string(key, out)
        coded = bytes(out)
        if type(key) is str and len(key) <= KEY_LENGTH_MAX and len(self) < KEYS_MAX:
            self[key] = coded
        return coded


def _kind(schema: Any) -> str:
    """The Avro type; "" for a logical one."""
    if isinstance(schema, str):
        return schema
    return "" if is_logical(schema) else str(schema["type"])


def _type(schema: Any) -> str | None:
    return _TYPES.get(_kind(schema))


def _in(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
