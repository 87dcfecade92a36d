"""Rows of the log and the outbox in COPY's binary format (PostgreSQL manual, COPY, "Binary Format").

psycopg can write such rows too, value by value through its adapters; packing the few types there are here
by hand takes a third of the time, and bulk loads do little else.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from outbox.event import YEAR_2000

HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Signature, no flags, no extension."""

TRAILER: Final = b"\xff\xff"

EVENT_COLUMNS: Final = "position, stream, version, type, id, data, meta, at"
"""The columns of :func:`event_row`."""

_LENGTH: Final = struct.Struct("!i")
_BIGINT_FIRST: Final = struct.Struct("!hiq")
"""The number of columns, and a bigint as the first of them."""

_BIGINT: Final = struct.Struct("!iq")
_UUID_LENGTH: Final = _LENGTH.pack(16)
_JSONB_VERSION: Final = b"\x01"


def field(value: bytes) -> bytes:
    """One value with its length before it."""
    return _LENGTH.pack(len(value)) + value


def bigint(value: int) -> bytes:
    """A bigint as a field; a timestamptz is one too, in microseconds since the year 2000."""
    return _BIGINT.pack(8, value)


def timestamp(at: datetime) -> bytes:
    """A timestamptz as a field."""
    since = at - YEAR_2000
    return bigint((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def event_row(
    position: int, stream: bytes, version: int, type_: bytes, id_: uuid.UUID, data: bytes, meta: bytes, at: bytes
) -> bytes:
    """One row of ``outbox.event``; ``stream``, ``type_`` and ``at`` are fields made before, as many rows share them."""
    return b"".join(
        (
            _BIGINT_FIRST.pack(8, 8, position),
            stream,
            _BIGINT.pack(8, version),
            type_,
            _UUID_LENGTH,
            id_.bytes,
            _LENGTH.pack(len(data)),
            data,
            _LENGTH.pack(len(meta) + 1),
            _JSONB_VERSION,
            meta,
            at,
        )
    )


def position_rows(positions: Iterable[int]) -> bytes:
    """Rows of ``outbox.outbox`` that hold a position and nothing else."""
    return b"".join(_BIGINT_FIRST.pack(1, 8, position) for position in positions)
