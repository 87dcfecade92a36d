"""Reading the rows of a known table straight out of pgoutput's inserts: one unpacking a run of columns, no objects.

A layout says what a message of its table looks like if nothing is special about it. What looks otherwise in any
respect (another column null, a value as text, a length that does not fit, a byte too few) it does not read, and
:class:`~outbox.relay.pgoutput_decoder.Decoder` reads it or says what is wrong with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, Final

from outbox.relay.pgoutput import Relation

_ROW_AT: Final = 5
"""Where an insert's row begins, outside of a stream block: behind its kind and its table."""
_NUMBER: Final = "5sq", b"b\0\0\0\x08"
_FIXED: Final = {
    20: _NUMBER,  # bigint
    1184: _NUMBER,  # timestamptz
    5069: _NUMBER,  # xid8
    2950: ("5s16s", b"b\0\0\0\x10"),  # uuid
}
"""Types of one length by their OIDs (pg_type.dat): the form of a value, and what stands before each."""
_LONG: Final = "cI", b"b"
_NULL: Final = "c", b"n"


class Layout:
    """Of one table, as long as it is not described anew."""

    def __init__(self, relation: Relation, wanted: Sequence[str], null: Collection[str] = ()) -> None:
        """``wanted``: columns, of which numbers and times are given as integers, all else as bytes; ``null``: those
        that are null."""
        self._segments: list[tuple[Callable[[bytes, int], tuple[Any, ...]], int, bool]] = []
        form, places = "3s", {}
        expected: list[bytes] = [b"N" + len(relation.columns).to_bytes(2, "big")]
        checked, count = [0], 1
        for column in relation.columns:
            more, begins = _NULL if column.name in null else _FIXED.get(column.type_oid, _LONG)
            form += more
            expected.append(begins)
            checked.append(count)
            places[column.name] = count + (begins != b"n")
            count += 1 + (begins != b"n")
            if begins == b"b":
                self._end_segment(form, measured=True)
                form = ""
        self._end_segment(form, measured=False)
        self._expected = tuple(expected)
        self._checked, self._wanted = itemgetter(*checked), itemgetter(*(places[name] for name in wanted))

    def _end_segment(self, form: str, *, measured: bool) -> None:
        if form:
            packed = struct.Struct(f"!{form}")
            self._segments.append((packed.unpack_from, packed.size, measured))

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """The wanted columns of an insert outside of a stream block; None if it does not look like that."""
        parts: list[Any] = []
        at = _ROW_AT
        try:
            for unpack, size, measured in self._segments:
                parts += unpack(data, at)
                at += size
                if measured:  # it ended with the length of what follows
                    begin, at = at, at + parts[-1]
                    parts[-1] = data[begin:at]
        except struct.error:
            return None
        if at != len(data) or self._checked(parts) != self._expected:
            return None
        return self._wanted(parts)  # type: ignore[no-any-return]
