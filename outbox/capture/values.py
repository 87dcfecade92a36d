"""Values of columns: from PostgreSQL's text form to what an event holds, for every type there is.

Both ways out of the source, logical replication and COPY, write a value by its type's output function, under the
session's settings (:data:`SESSION`). So a row read from a snapshot equals the same row read from the log of changes.

=====================================  =====================================================================
boolean                                ``bool``
smallint, integer, bigint, oid         ``int``
real, double precision                 ``float``; ``str`` if it is NaN or infinite, which JSON and stores lack
bytea                                  ``bytes``
an array of one dimension              ``list`` of these; of more dimensions, or not counted from 1: ``str``
a domain                               as the type below it
all others                             ``str``, exactly as PostgreSQL writes it: numeric keeps its digits and scale
=====================================  =====================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from outbox.database import Connection

Convert = Callable[[str], Any]

SESSION: Final[Mapping[str, str]] = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",  # the shortest text that gives the very same number back
    "bytea_output": "hex",
    "lc_monetary": "C",
    "client_encoding": "UTF8",
    "xmloption": "content",
    "search_path": "pg_catalog",  # names inside values (regclass, regproc) come qualified
}
"""What decides the text form of values, the same for every session that reads the source."""

_BOOLEAN, _BYTEA = 16, 17
_WHOLE: Final = frozenset({20, 21, 23, 26})
_FLOATING: Final = frozenset({700, 701})
_NOT_ARRAYS: Final = frozenset({22, 30})
"""int2vector and oidvector, which are arrays but are not written as such."""

_TYPES: Final = """
SELECT oid::bigint, typbasetype::bigint, CASE WHEN typcategory = 'A' AND typlen = -1 THEN typelem::bigint ELSE 0 END,
       typdelim::text
FROM pg_type WHERE oid = ANY (%s::oid[])
"""
_ELEMENT: Final = r'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^{d}"{{}}]+)'
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)

_Type = tuple[int, int, str]
"""The type below a domain, an array's element, and what stands between elements."""


class Types:
    """Converters by type, asked of the source's catalog once each. Used by one thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[int, _Type] = {}
        self._converters: dict[int, Convert | None] = {}

    def converters(self, oids: Sequence[int]) -> list[Convert | None]:
        """One a column; None: the text itself. A type that has been dropped since counts as text."""
        self._learn(set(oids) - self._converters.keys())
        for oid in oids:
            if oid not in self._converters:
                self._converters[oid] = self._converter(oid)
        return [self._converters[oid] for oid in oids]

    def avro(self, oid: int) -> Any:
        """The Avro schema of the values that :meth:`converters` gives; null apart."""
        self._learn({oid})
        below, element, _ = self._known.get(oid, (0, 0, ""))
        if oid in _SCALARS:
            return _SCALARS[oid]
        if below:
            return self.avro(below)
        if element and oid not in _NOT_ARRAYS:
            items = self.avro(element)
            return [{"type": "array", "items": ["null", *(items if isinstance(items, list) else [items])]}, "string"]
        return "string"

    def _learn(self, oids: Iterable[int]) -> None:
        """Ask for these types and those they are made of."""
        wanted = {oid for oid in oids if oid not in self._known}
        while wanted:
            rows = self._connection.execute(_TYPES, [list(wanted)]).fetchall()
            self._known |= {oid: (below, element, delimiter) for oid, below, element, delimiter in rows}
            wanted = {oid for _, *made_of, _ in rows for oid in made_of if oid and oid not in self._known}

    def _converter(self, oid: int) -> Convert | None:
        if oid in _CONVERTERS:
            return _CONVERTERS[oid]
        below, element, delimiter = self._known.get(oid, (0, 0, ""))
        if below:
            return self._converter(below)
        if element and oid not in _NOT_ARRAYS:
            return array_of(self._converter(element), delimiter)
        return None


def array_of(convert: Convert | None, delimiter: str) -> Convert:
    """A converter of arrays (PostgreSQL manual, 8.15.6 "Array Input and Output Syntax")."""
    elements = re.compile(_ELEMENT.format(d=re.escape(delimiter)))

    def read(match: re.Match[str]) -> Any:
        quoted, plain = match["quoted"], match["plain"]
        if plain == "NULL":
            return None
        text = _ESCAPED.sub(r"\1", quoted) if plain is None else plain
        return text if convert is None else convert(text)

    def array(text: str) -> Any:
        if not text.startswith("{") or text.startswith("{{"):
            return text
        return [read(match) for match in elements.finditer(text, 1)]

    return array


def _boolean(text: str) -> bool:
    return text == "t"


def _float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


_CONVERTERS: Final[Mapping[int, Convert]] = {
    _BOOLEAN: _boolean,
    _BYTEA: _bytes,
    **dict.fromkeys(_WHOLE, int),
    **dict.fromkeys(_FLOATING, _float),
}
_SCALARS: Final[Mapping[int, Any]] = {
    _BOOLEAN: "boolean",
    _BYTEA: "bytes",
    **dict.fromkeys(_WHOLE, "long"),
    **{oid: ["double", "string"] for oid in _FLOATING},
}
