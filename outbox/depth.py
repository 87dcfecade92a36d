"""How deep encoded data nest, found without building them.

Only for schemas whose records contain themselves: there the bytes alone say how deep to recurse, and the
C reader recurses without a bound, so a corrupt or hostile event would end the process, not raise.
Format: Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from outbox.refusal import Refusal
from outbox.shape import DEPTH_MAX

_FIXED_BYTES: Final = {"null": 0, "boolean": 1, "float": 4, "double": 8}
_LONG_BYTES_MAX: Final = 10


def check_depth(schema: Mapping[str, Any], data: bytes, start: int) -> None:
    """Raise :class:`~outbox.refusal.Refusal` if the value at ``start`` is cut off or nests too deep."""
    _Skipper(schema["__named_schemas"], data, start).skip(schema, 0)


class _Skipper:
    """Walks over one value; ``at`` is the next byte."""

    def __init__(self, named: Mapping[str, Any], data: bytes, at: int) -> None:
        self._named = named
        self._data = data
        self._at = at

    def skip(self, schema: Any, depth: int) -> None:
        if isinstance(schema, list):
            self.skip(self._branch(schema), depth)
            return
        kind = schema if isinstance(schema, str) else schema["type"]
        if kind in self._named:
            self.skip(self._named[kind], depth)
        elif kind in ("array", "map", "record"):
            self._skip_container(schema, kind, depth)
        else:
            self._skip_plain(schema, kind)

    def _skip_container(self, schema: Mapping[str, Any], kind: str, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise Refusal(f"are nested deeper than {DEPTH_MAX} levels")
        if kind == "record":
            for field in schema["fields"]:
                self.skip(field["type"], depth + 1)
            return
        while count := self._long():
            if count < 0:
                self._long()  # the block's size in bytes, which comes only with a negative count
            for _ in range(abs(count)):
                if kind == "map":
                    self._skip_plain("string", "string")
                self.skip(schema["values" if kind == "map" else "items"], depth + 1)

    def _skip_plain(self, schema: Any, kind: str) -> None:
        if kind in ("int", "long", "enum"):
            self._long()
        elif kind in ("string", "bytes"):
            self._advance(self._long())
        else:
            self._advance(schema["size"] if kind == "fixed" else _FIXED_BYTES[kind])

    def _branch(self, branches: list[Any]) -> Any:
        index = self._long()
        if not 0 <= index < len(branches):
            raise Refusal("name a union branch that does not exist")
        return branches[index]

    def _advance(self, size: int) -> None:
        self._at += size
        if size < 0 or self._at > len(self._data):
            raise Refusal("are cut off")

    def _long(self) -> int:
        coded = 0
        for place in range(_LONG_BYTES_MAX):
            self._advance(1)
            byte = self._data[self._at - 1]
            coded |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return coded >> 1 ^ -(coded & 1)
        raise Refusal("hold a number of more than ten bytes")
