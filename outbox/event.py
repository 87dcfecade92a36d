"""Events as producers write them and as readers get them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from outbox.errors import DatabaseError, InvalidEvent

Data = Mapping[str, Any]

Resets = Callable[[str, int, str], bool]
"""Whether an event, of which stream, version and type are given, says all there is of its stream: what was before it
does not matter to what follows."""

STREAM_LENGTH_MAX: Final = 1024
"""Characters in a stream's name: it must fit every store's key."""

STREAM_BYTES_MAX: Final = 2_048
"""Bytes of the same in UTF-8: with what stands beside it in an index (a version, a topic, a projector and its
generation) it must fit a B-tree entry, 2,704 bytes."""

CATEGORY_LENGTH_MAX: Final = 247
"""Characters of a stream's category: with the shortest prefix and its dot, the name of a topic has 249."""

YEAR_2000: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""What PostgreSQL counts from."""


def time_of(us: int) -> datetime:
    """The time so many microseconds after 2000-01-01 UTC, as PostgreSQL sends it in binary form. Raises
    :class:`~outbox.errors.DatabaseError` for one that no calendar knows."""
    try:
        return YEAR_2000 + timedelta(microseconds=us)
    except OverflowError as error:
        raise DatabaseError(f"an event has a time that no calendar knows, {us} µs after the year 2000") from error


def uuid7() -> uuid.UUID:
    """A time-ordered UUID, version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return uuid.UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def in_json(value: object) -> str:
    """What JSON has no form for, as text: bytes as PostgreSQL and the projection ``rows`` write them."""
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append. ``id`` makes the append idempotent: give the same id when trying again."""

    type: str
    data: Data
    id: uuid.UUID = field(default_factory=uuid7)
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The envelope's free part: correlation_id, causation_id, traceparent and whatever the producer adds."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it stands in the log."""

    stream: str
    version: int
    """1..n without a gap, per stream."""
    type: str
    data: Data
    """Decoded and brought up to the newest schema version; treat it as read-only."""
    id: uuid.UUID
    position: int
    """Place in the log: unique and rising within a stream; across streams there may be gaps."""
    at: datetime
    meta: Mapping[str, Any]

    @property
    def category(self) -> str:
        return category_of(self.stream)


def category_of(stream: str) -> str:
    """The part of a stream's name before the first ``-`` (the whole name if there is none)."""
    return stream.partition("-")[0]


def check_stream(stream: str) -> str:
    """Return ``stream`` if it can name a stream, else raise :class:`InvalidEvent`."""
    category = category_of(stream)
    if not category:
        raise InvalidEvent(f"stream name {stream!r} is empty before its first '-'", "stream")
    if len(stream) > STREAM_LENGTH_MAX:
        raise InvalidEvent(f"stream name of {len(stream)} characters is longer than {STREAM_LENGTH_MAX}", "stream")
    if "\x00" in stream or not stream.isprintable():
        raise InvalidEvent(f"stream name {stream!r} holds a character that cannot be printed", "stream")
    if len(stream.encode()) > STREAM_BYTES_MAX:
        raise InvalidEvent(f"stream name of {len(stream.encode())} bytes is longer than {STREAM_BYTES_MAX}", "stream")
    if len(category) > CATEGORY_LENGTH_MAX:  # no broker would ever take its events
        raise InvalidEvent(
            f"category of {len(category)} characters is longer than {CATEGORY_LENGTH_MAX}: topics are named after it",
            "stream",
        )
    if any(not (c.isascii() and (c.isalnum() or c in "._")) for c in category):
        raise InvalidEvent(f"category {category!r} may hold only letters, digits, '.' and '_'", "stream")
    return stream
