"""Arrays in PostgreSQL's binary format (``array_recv`` and ``array_send`` of its arrayfuncs.c).

psycopg can write such arrays too, by asking for and calling a dumper for every item: for a batch of short items that
takes longer than the items do.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from typing import Final

_BYTEA, _TEXT, _UUID = 17, 25, 2950
"""Object identifiers of the items' types (pg_type.dat); built-in ones never change."""

_HEADER: Final = struct.Struct("!iiIii")
"""Dimensions (one), whether there are nulls (no), the items' type, how many there are, the first subscript (one)."""

_LENGTH: Final = struct.Struct("!i")
_UUID_LENGTH: Final = _LENGTH.pack(16)


class PackedArray(bytes):
    """An array that is ready to be sent."""

    __slots__ = ()


def bytea_array(items: Sequence[bytes]) -> PackedArray:
    """A ``bytea[]``."""
    return _packed(_BYTEA, len(items), _fields(items))


def text_array(items: Sequence[str], encoding: str) -> PackedArray:
    """A ``text[]`` in the client's encoding; items that are all the same, as types often are, are encoded once.

    Raises UnicodeEncodeError for a text that the encoding cannot say.
    """
    if len(set(items)) == 1:
        return _packed(_TEXT, len(items), _fields([items[0].encode(encoding)]) * len(items))
    return _packed(_TEXT, len(items), _fields([item.encode(encoding) for item in items]))


def uuid_array(items: Sequence[uuid.UUID]) -> PackedArray:
    """A ``uuid[]``."""
    return _packed(_UUID, len(items), b"".join([_UUID_LENGTH + item.bytes for item in items]))


def _fields(items: Sequence[bytes]) -> bytes:
    """Each item with its length before it."""
    length = _LENGTH.pack
    return b"".join([part for item in items for part in (length(len(item)), item)])


def _packed(oid: int, count: int, fields: bytes) -> PackedArray:
    return PackedArray(_HEADER.pack(1, 0, oid, count, 1) + fields)
