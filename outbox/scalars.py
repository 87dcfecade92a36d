"""Strict Avro encoding of single values: what is not exactly the type is refused, never converted.

Format: Avro 1.12 specification, "Binary Encoding", "Primitive Types" and "Logical Types".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastavro.read import LOGICAL_READERS
from fastavro.write import LOGICAL_WRITERS

from outbox.refusal import Refusal


class Output(bytearray):
    """What is encoded so far, with the bounds that hold while it grows."""

    __slots__ = ("depth", "size_max")

    def __init__(self, prefix: bytes, size_max: int) -> None:
        super().__init__(prefix)
        self.depth = 0
        self.size_max = size_max
        """Bytes; checked after every array and map, so that shared data cannot grow without end."""


Write = Callable[[Any, Output], None]
"""Appends a value's encoding; raises :class:`~outbox.refusal.Refusal`, leaving some bytes behind."""

INT_MAX: Final = 2**31 - 1
LONG_MAX: Final = 2**63 - 1
FLOAT_MAX: Final = (2 - 2**-23) * 2.0**127
"""Greatest finite single-precision number (IEEE 754)."""

SMALL: Final = 1 << 13
"""Lengths and numbers below this are looked up: the ones that take one or two bytes."""

_double = struct.Struct("<d").pack
_float = struct.Struct("<f").pack


def zigzag(value: int) -> bytes:
    """A long's variable-length zig-zag coding."""
    rest = (value << 1) ^ (value >> 63)
    coded = bytearray()
    while rest > 0x7F:
        coded.append(rest & 0x7F | 0x80)
        rest >>= 7
    coded.append(rest)
    return bytes(coded)


SMALL_CODED: Final = tuple(zigzag(n) for n in range(SMALL))


def mismatch(expected: str, value: Any) -> Refusal:
    """The refusal of a value of the wrong type. Says the type only: values may be private or huge."""
    return Refusal(f"expected {expected}, got {type(value).__name__}")


def write_null(value: Any, _out: Output) -> None:
    if value is not None:
        raise mismatch("null", value)


def write_boolean(value: Any, out: Output) -> None:
    if value is not True and value is not False:
        raise mismatch("boolean", value)
    out += b"\x01" if value else b"\x00"


def write_int(value: Any, out: Output) -> None:
    _whole(value, "int", INT_MAX, out)


def write_long(value: Any, out: Output) -> None:
    if type(value) is int and 0 <= value < SMALL:
        out += SMALL_CODED[value]
    else:
        _whole(value, "long", LONG_MAX, out)


def _whole(value: Any, kind: str, greatest: int, out: Output) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise mismatch(kind, value)
    if not -greatest - 1 <= value <= greatest:
        raise Refusal(f"is outside the range of {kind}, {-greatest - 1} to {greatest}")
    out += zigzag(value)


def write_double(value: Any, out: Output) -> None:
    out += _double(value if type(value) is float and math.isfinite(value) else _finite(value, "double"))


def write_float(value: Any, out: Output) -> None:
    """Single precision keeps 24 bits of the number; that loss the schema's author has chosen."""
    number = _finite(value, "float")
    if abs(number) > FLOAT_MAX:
        raise Refusal("is outside the range of float (single precision)")
    out += _float(number)


def _finite(value: Any, kind: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch(kind, value)
    if isinstance(value, int):
        return _exact(value, kind)
    if not math.isfinite(value):
        raise Refusal(f"is {float(value)}, which JSON and the stores cannot hold")
    return value


def _exact(value: int, kind: str) -> float:
    if abs(value) > 2**53 and (abs(value).bit_length() > 1024 or int(_rounded(value)) != value):
        raise Refusal(f"is a whole number that {kind} cannot hold exactly")
    return float(value)


def _rounded(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return 0.0


def write_string(value: Any, out: Output) -> None:
    if type(value) is not str and not isinstance(value, str):
        raise mismatch("string", value)
    if "\0" in value:
        raise Refusal("holds NUL (U+0000), which PostgreSQL and the stores cannot hold")
    try:
        coded = value.encode()
    except UnicodeEncodeError as error:
        raise Refusal(f"holds the lone surrogate U+{ord(value[error.start]):04X}, which is not text") from None
    length = len(coded)
    out += SMALL_CODED[length] if length < SMALL else zigzag(length)
    out += coded


def write_bytes(value: Any, out: Output) -> None:
    if not isinstance(value, bytes):
        raise mismatch("bytes", value)
    out += zigzag(len(value))
    out += value


def fixed(size: int) -> Write:
    """Exactly ``size`` bytes."""

    def write(value: Any, out: Output) -> None:
        if not isinstance(value, bytes):
            raise mismatch(f"{size} bytes", value)
        if len(value) != size:
            raise Refusal(f"expected {size} bytes, got {len(value)}")
        out += value

    return write


def enum(symbols: list[str]) -> Write:
    """One of ``symbols``."""
    coded = {symbol: zigzag(index) for index, symbol in enumerate(symbols)}

    def write(value: Any, out: Output) -> None:
        if not isinstance(value, str):
            raise mismatch("string", value)
        if value not in coded:
            raise Refusal(f"is none of the symbols {', '.join(symbols[:8])}{', ...' if len(symbols) > 8 else ''}")
        out += coded[value]

    return write


def is_logical(schema: Mapping[str, Any]) -> bool:
    """Whether the schema has a logical type known here; the specification says to ignore any other."""
    return f"{schema['type']}-{schema.get('logicalType')}" in LOGICAL_WRITERS


def logical(schema: Mapping[str, Any], write_raw: Write) -> Write:
    """A date, decimal, UUID, ...: written only if it would come back equal (time zone and precision kept)."""
    kind = f"{schema['type']}-{schema['logicalType']}"
    prepare, restore = LOGICAL_WRITERS[kind], LOGICAL_READERS[kind]

    def write(value: Any, out: Output) -> None:
        try:
            raw = prepare(value, schema)
            same = restore(raw, schema, schema) == value
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise mismatch(f"a value for {schema['logicalType']}", value) from error
        if not same:
            reason = "it would come back different (time zone, precision or type)"
            raise Refusal(f"{type(value).__name__} cannot be kept as {schema['logicalType']}: {reason}")
        write_raw(raw, out)

    return write


PRIMITIVES: Final[Mapping[str, Write]] = {
    "null": write_null,
    "boolean": write_boolean,
    "int": write_int,
    "long": write_long,
    "float": write_float,
    "double": write_double,
    "string": write_string,
    "bytes": write_bytes,
}
