"""Strict Avro encoding of what holds other values: records, arrays, maps and unions, one closure each.

Format: Avro 1.12 specification, "Complex Types" and "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from outbox.refusal import Refusal
from outbox.scalars import PRIMITIVES, SMALL, SMALL_CODED, Output, Write, mismatch, zigzag
from outbox.shape import DEPTH_MAX

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


def too_large(out: Output) -> Refusal:
    """The refusal of data that have outgrown the limit."""
    return Refusal(
        f"is larger than {out.size_max:,} bytes when encoded: keep large content elsewhere, and its key here"
    )
