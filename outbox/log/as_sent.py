"""Rows of the log as PostgreSQL sends them: of many rows little is asked, and what is not asked for is not made."""

from __future__ import annotations

from typing import Any, Final

import orjson
from psycopg.abc import AdaptContext
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

EMPTY: Final = b"\1{}"
"""An empty object as PostgreSQL sends it: a jsonb's binary form begins with its version."""


def read_as_sent(context: AdaptContext) -> None:
    """Have a connection or cursor leave a ``jsonb`` and a time as they come in binary form: bytes, and
    the microseconds of :func:`outbox.event.time_of`."""
    context.adapters.register_loader("jsonb", ByteaBinaryLoader)
    context.adapters.register_loader("timestamptz", Int8BinaryLoader)


def json_of(sent: bytes) -> Any:
    """What a ``jsonb`` says."""
    return {} if sent == EMPTY else orjson.loads(sent[1:])
