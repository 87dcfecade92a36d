"""Rows of the log as PostgreSQL sends them: of many rows little is asked, and what is not asked for is not made."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import orjson
from psycopg import BaseConnection
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

EMPTY: Final = b"\1{}"
"""An empty object as PostgreSQL sends it: a jsonb's binary form begins with its version."""


def encoding_of(connection: BaseConnection[Any]) -> str:
    """In which texts are sent. SQL_ASCII, the default of a database made in the locale C, says that nobody converts
    them: psycopg sends UTF-8 and gives what it is sent as bytes (:func:`text_of`)."""
    encoding = connection.info.encoding
    return "utf-8" if encoding == "ascii" else encoding


def text_of(value: Any) -> Any:
    """A text, also of a connection that speaks SQL_ASCII."""
    return value.decode() if isinstance(value, bytes) else value


class _Utf8(Loader):
    """Texts that nobody converts."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


@cache
def _converted(encoding: str) -> type[Loader]:
    """Reads texts of another encoding as bytes in UTF-8."""

    class Converted(Loader):
        format = Format.BINARY

        def load(self, data: Buffer) -> bytes:
            return bytes(data).decode(encoding).encode()

    return Converted


def read_as_sent(context: AdaptContext) -> None:
    """Have a connection or cursor leave a ``jsonb`` and a time as they come in binary form: bytes, and
    the microseconds of :func:`outbox.event.time_of`. Both are UTF-8 whatever the client's encoding."""
    encoding = context.connection.info.encoding if context.connection is not None else "utf-8"
    if encoding in {"utf-8", "ascii"}:
        context.adapters.register_loader("jsonb", ByteaBinaryLoader)
    else:
        context.adapters.register_loader("jsonb", _converted(encoding))
    if encoding == "ascii":
        context.adapters.register_loader("text", _Utf8)
    context.adapters.register_loader("timestamptz", Int8BinaryLoader)


def json_of(sent: bytes) -> Any:
    """What a ``jsonb`` says."""
    return {} if sent == EMPTY else orjson.loads(sent[1:])
