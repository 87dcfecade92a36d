"""The append without I/O: it builds one statement and reads its one row. Adapters only carry them.

Keeping this apart from every driver is what lets one append serve psycopg, SQLAlchemy (both drivers, sync
and async) and Django without a second copy of the rules.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from outbox.codec import Registry
from outbox.errors import DuplicateEvent, InvalidEvent, VersionConflict
from outbox.event import NewEvent, check_stream

Expected = int | Literal["any", "exists", "none"]
"""The version a stream must have: a number (0: it must not exist yet), or a word."""

APPEND: Final = "SELECT status, version, positions, xid FROM outbox.append(:stream, :expected, :types, :ids, :data, :meta)"
SEND: Final = (
    "INSERT INTO outbox.outbox (topic, key, headers, payload)"
    " VALUES (:topic, :key, CAST(:headers AS jsonb), :payload) RETURNING CAST(xid AS text)"
)
PARAMETERS: Final = {"append": ("stream", "expected", "types", "ids", "data", "meta"), "send": ("topic", "key", "headers", "payload")}

BATCH_MAX: Final = 10_000
"""Events in one append; more than that is a bulk load."""

META_BYTES_MAX: Final = 65_536
TOPIC_LENGTH_MAX: Final = 249
"""Kafka's own bound for the name of a topic."""

_WORDS: Final = {"none": 0, "any": -1, "exists": -2}


@dataclass(frozen=True, slots=True)
class Token:
    """Names a transaction. Give it to ``wait_for`` to read what that transaction wrote."""

    xid: int

    def __str__(self) -> str:
        return str(self.xid)


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append gave: the stream's new version and each event's position, in order.

    ``repeated``: the very same events stood in the log already; nothing was written now.
    """

    stream: str
    version: int
    positions: tuple[int, ...]
    ids: tuple[uuid.UUID, ...]
    token: Token
    repeated: bool


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with ``:name`` parameters and their values, in the order of the text."""

    sql: str
    values: Mapping[str, Any]


def append_statement(stream: str, expected: Expected, events: Sequence[NewEvent], registry: Registry) -> Statement:
    """Encode and check the events and build the statement. Raises :class:`~outbox.errors.InvalidEvent`."""
    if not events:
        raise InvalidEvent("an append needs at least one event")
    if len(events) > BATCH_MAX:
        raise InvalidEvent(f"{len(events)} events in one append, at most {BATCH_MAX}: use the bulk load")
    ids = [e.id for e in events]
    if len(set(ids)) < len(ids):
        raise InvalidEvent("an event id stands twice in the batch", "id")
    return Statement(
        APPEND,
        {
            "stream": check_stream(stream),
            "expected": expected_number(expected),
            "types": [e.type for e in events],
            "ids": ids,
            "data": [registry.encode(e.type, e.data) for e in events],
            "meta": [encode_meta(e.meta) for e in events],
        },
    )


def read_append(statement: Statement, row: Sequence[Any]) -> Appended:
    """Turn the statement's row into :class:`Appended`, or raise the conflict it tells of."""
    status, version, positions, xid = row
    stream, ids = statement.values["stream"], statement.values["ids"]
    if status == "conflict":
        raise VersionConflict(stream, _spoken(statement.values["expected"]), version)
    if status == "duplicate":
        raise DuplicateEvent(stream)
    return Appended(stream, version, tuple(positions), tuple(ids), Token(int(xid)), status == "repeated")


def send_statement(topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None) -> Statement:
    """A plain message without an event: it goes to the topic as it is, and leaves no trace in the log."""
    if not topic or len(topic) > TOPIC_LENGTH_MAX or not all(c.isascii() and (c.isalnum() or c in "._-") for c in topic):
        raise InvalidEvent(f"topic {topic!r}: 1 to {TOPIC_LENGTH_MAX} letters, digits, '.', '_' or '-'", "topic")
    if "\x00" in key:
        raise InvalidEvent("a key cannot hold NUL", "key")
    return Statement(SEND, {"topic": topic, "key": key, "headers": encode_meta(headers or {}), "payload": payload})


def expected_number(expected: Expected) -> int:
    """The number that stands for an expected version in SQL."""
    if isinstance(expected, bool) or not isinstance(expected, int | str):
        raise InvalidEvent(f"expected version {expected!r} is neither a number nor 'any', 'exists' or 'none'", "expected")
    number = _WORDS.get(expected) if isinstance(expected, str) else expected
    if number is None or (not isinstance(expected, str) and number < 0):
        raise InvalidEvent(f"expected version {expected!r} is none of: 0, 1, 2, ..., 'any', 'exists', 'none'", "expected")
    return number


def encode_meta(meta: Mapping[str, Any]) -> str:
    """The envelope as JSON text. Raises :class:`~outbox.errors.InvalidEvent` if JSON cannot hold it."""
    if not meta:
        return "{}"
    try:
        text = orjson.dumps(meta, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError) as error:
        raise InvalidEvent(f"meta cannot be written as JSON: {error}", "meta") from error
    if "\\u0000" in text:
        raise InvalidEvent("meta holds a NUL character", "meta")
    if len(text) > META_BYTES_MAX:
        raise InvalidEvent(f"meta of {len(text)} characters is longer than {META_BYTES_MAX}", "meta")
    return text


def _spoken(expected: int) -> str:
    return {0: "none", -1: "any", -2: "exists"}.get(expected, str(expected))
