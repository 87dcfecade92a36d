"""Rows of the log as PostgreSQL sends them: of many rows little is asked, and what is not asked for is not made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from psycopg.abc import AdaptContext
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

from outbox.errors import DatabaseError

YEAR_2000: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""What a time in PostgreSQL's binary form counts from, in microseconds."""

EMPTY: Final = b"\1{}"
"""An empty object as PostgreSQL sends it: a jsonb's binary form begins with its version."""


def read_as_sent(context: AdaptContext) -> None:
    """Have a connection or cursor leave a ``jsonb`` and a time as they come in binary form: bytes and microseconds."""
    context.adapters.register_loader("jsonb", ByteaBinaryLoader)
    context.adapters.register_loader("timestamptz", Int8BinaryLoader)


def json_of(sent: bytes) -> Any:
    """What a ``jsonb`` says."""
    return {} if sent == EMPTY else orjson.loads(sent[1:])


def time_of(us: int) -> datetime:
    """The time, in UTC. Raises :class:`~outbox.errors.DatabaseError` for one that no calendar knows."""
    try:
        return YEAR_2000 + timedelta(microseconds=us)
    except OverflowError as error:
        raise DatabaseError(f"an event has a time that no calendar knows, {us} µs after the year 2000") from error
