"""The append without I/O: it builds one statement and reads its one row. Adapters only carry them.

Keeping this apart from every driver is what lets one append serve psycopg, SQLAlchemy (both drivers, sync
and async) and Django without a second copy of the rules.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from outbox.codec import SIZE_MAX, Registry
from outbox.errors import DuplicateEvent, InvalidEvent, VersionConflict
from outbox.event import STREAM_BYTES_MAX, STREAM_LENGTH_MAX, NewEvent, check_stream
from outbox.log.as_sent import text_of

Expected = int | Literal["any", "exists", "none"]
"""The version a stream must have: a number (0: it must not exist yet), or a word."""

APPEND: Final = (
    "SELECT status, version, positions, xid"
    " FROM outbox.append(:stream, :expected, :types, :ids, CAST(:data AS bytea[]), :meta)"
)
APPEND_ONE: Final = (
    "SELECT outbox.append_event(:stream, CAST(:expected AS bigint), :types, CAST(:ids AS uuid), :data, :meta)"
)
"""The parameters have the same names, so that all statements are handled alike. The casts let a driver send text."""

SEND: Final = (
    "WITH sent AS (INSERT INTO outbox.outbox (topic, key, headers, payload)"
    " VALUES (:topic, :key, CAST(:headers AS jsonb), :payload) RETURNING CAST(xid AS text))"
    " SELECT xid, outbox.wake() FROM sent"
)

BATCH_MAX: Final = 10_000
"""Events in one append; more than that is a bulk load."""

BATCH_BYTES_MAX: Final = 128 * 1024 * 1024
"""Encoded data of one append; PostgreSQL takes 1 GiB in one message, and hexadecimal doubles it."""

VERSION_MAX: Final = 2**63 - 1

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


def append_statement(
    stream: str, expected: Expected, events: Sequence[NewEvent] | NewEvent, registry: Registry
) -> Statement:
    """Encode and check the events and build the statement. Raises :class:`~outbox.errors.InvalidEvent`."""
    if isinstance(events, NewEvent):
        return _one_statement(stream, expected, events, registry)
    if not isinstance(events, Sequence):  # a generator: what is appended is looked at more than once
        raise InvalidEvent(f"events is a {type(events).__name__}: give a NewEvent, or a list of them")
    if len(events) == 1:
        return _one_statement(stream, expected, events[0], registry)
    return Statement(APPEND, check_batch(stream, expected, events, registry))


def _one_statement(stream: str, expected: Expected, event: NewEvent, registry: Registry) -> Statement:
    """What :func:`check_batch` checks, in its order, without its lists: most appends are of one event."""
    values: dict[str, Any] = {
        "stream": check_stream(stream),
        "expected": expected_number(expected),
        "ids": check_id(event.id),
        "types": event.type,
        "data": registry.encode(event.type, event.data),
        "meta": encode_meta(event.meta),
    }
    _check_bytes(len(values["data"]))
    return Statement(APPEND_ONE, values)


def check_batch(stream: str, expected: Expected, events: Sequence[NewEvent], registry: Registry) -> dict[str, Any]:
    """Encode and check one batch: its stream and expected number, and lists of ids, types, data and meta."""
    return check_frame(stream, expected, events) | {
        "types": [e.type for e in events],
        "data": encode_all(events, registry),
        "meta": [encode_meta(e.meta) for e in events],
    }


def check_frame(stream: str, expected: Expected, events: Sequence[NewEvent]) -> dict[str, Any]:
    """Check all of a batch but what its events say: its stream and expected number, and the list of ids."""
    if not events:
        raise InvalidEvent("an append needs at least one event")
    if len(events) > BATCH_MAX:
        raise InvalidEvent(f"{len(events)} events in one append, at most {BATCH_MAX}: use the bulk load")
    return {"stream": check_stream(stream), "expected": expected_number(expected), "ids": check_ids(events)}


def check_ids(events: Sequence[NewEvent]) -> list[uuid.UUID]:
    """The events' ids; raises :class:`~outbox.errors.InvalidEvent` if one is no UUID or stands twice."""
    ids = [check_id(e.id) for e in events]
    if len(set(ids)) < len(ids):
        raise InvalidEvent("an event id stands twice in the batch", "id")
    return ids


def check_id(id_: uuid.UUID) -> uuid.UUID:
    """An event's id; raises :class:`~outbox.errors.InvalidEvent` if it is no UUID."""
    if not isinstance(id_, uuid.UUID):
        raise InvalidEvent(f"event id {id_!r} is not a uuid.UUID", "id")
    return id_


def encode_all(events: Sequence[NewEvent], registry: Registry) -> list[bytes]:
    """The events' data, encoded and checked. Raises :class:`~outbox.errors.InvalidEvent`."""
    data = [registry.encode(e.type, e.data) for e in events]
    _check_bytes(sum(map(len, data)))
    return data


def _check_bytes(total: int) -> None:
    if total > BATCH_BYTES_MAX:
        raise InvalidEvent(f"{total} bytes in one append, at most {BATCH_BYTES_MAX}: append in several batches")


def read_append(statement: Statement, row: Sequence[Any]) -> Appended:
    """Turn the statement's row into :class:`Appended`, or raise the conflict it tells of."""
    if statement.sql is APPEND_ONE:
        return _read_one(statement, text_of(row[0]))
    status, version, positions, xid = row
    status = text_of(status)
    _check_status(statement, status, version)
    ids = tuple(statement.values["ids"])
    return Appended(statement.values["stream"], version, tuple(positions), ids, Token(int(xid)), status == "repeated")


def _read_one(statement: Statement, answer: str) -> Appended:
    """The same for one event, whose answer is a text."""
    status, version, *rest = answer.split(" ")
    _check_status(statement, status, int(version))
    position, xid = rest
    stream, id_ = statement.values["stream"], statement.values["ids"]
    return Appended(stream, int(version), (int(position),), (id_,), Token(int(xid)), status == "repeated")


def _check_status(statement: Statement, status: str, version: int) -> None:
    if status == "conflict":
        raise VersionConflict(statement.values["stream"], spoken(statement.values["expected"]), version)
    if status == "duplicate":
        raise DuplicateEvent(statement.values["stream"])


def send_statement(topic: str, key: str, payload: bytes | None, headers: Mapping[str, str] | None = None) -> Statement:
    """A plain message without an event: it goes to the topic as it is, and leaves no trace in the log."""
    return Statement(
        SEND,
        {"topic": _topic(topic), "key": _key(key), "headers": encode_meta(headers or {}), "payload": _payload(payload)},
    )


def _topic(topic: str) -> str:
    if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{TOPIC_LENGTH_MAX}}}", topic) or topic in {".", ".."}:
        raise InvalidEvent(f"topic {topic!r}: 1 to {TOPIC_LENGTH_MAX} letters, digits, '.', '_' or '-'", "topic")
    return topic


def _key(key: str) -> str:
    if len(key) > STREAM_LENGTH_MAX:
        raise InvalidEvent(f"a key of {len(key)} characters is longer than {STREAM_LENGTH_MAX}", "key")
    if "\x00" in key or not _is_unicode(key):
        raise InvalidEvent("a key cannot hold NUL or a lone surrogate", "key")
    if len(key.encode()) > STREAM_BYTES_MAX:  # the relay has to park it under this key if the broker refuses it
        raise InvalidEvent(f"a key of {len(key.encode())} bytes is longer than {STREAM_BYTES_MAX}", "key")
    return key


def _payload(payload: bytes | None) -> bytes | None:
    if payload is not None and not isinstance(payload, bytes):
        raise InvalidEvent(f"a payload is bytes or None, not {type(payload).__name__}", "payload")
    if payload is not None and len(payload) > SIZE_MAX:
        raise InvalidEvent(f"a payload of {len(payload)} bytes is larger than {SIZE_MAX}", "payload")
    return payload


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def expected_number(expected: Expected) -> int:
    """The number that stands for an expected version in SQL."""
    if isinstance(expected, str) and expected in _WORDS:
        return _WORDS[expected]
    if not isinstance(expected, int) or isinstance(expected, bool) or not 0 <= expected <= VERSION_MAX:
        raise InvalidEvent(
            f"expected version {expected!r} is none of 0, 1, 2, ..., 'any', 'exists', 'none'", "expected"
        )
    return expected


def spoken(expected: int) -> str:
    """The word or number a user would say for what :func:`expected_number` gives."""
    return {0: "none", -1: "any", -2: "exists"}.get(expected, str(expected))


def encode_meta(meta: Mapping[str, Any]) -> str:
    """The envelope as JSON text. Raises :class:`~outbox.errors.InvalidEvent` if JSON cannot hold it."""
    if not meta:
        return "{}"
    try:
        text = orjson.dumps(dict(meta)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"meta cannot be written as JSON: {error}", "meta") from error
    if len(text) > META_BYTES_MAX:
        raise InvalidEvent(f"meta of {len(text)} characters is longer than {META_BYTES_MAX}", "meta")
    if "null" in text or "\\u0000" in text:  # what might hide a NaN (orjson writes null) or a NUL; both are rare
        _check_plain(meta, "meta")
    return text


def _check_plain(value: Any, field: str) -> None:
    match value:
        case str():
            if "\x00" in value:
                raise InvalidEvent(f"{field} holds a NUL character", field)
        case float():
            if not math.isfinite(value):
                raise InvalidEvent(f"{field} is {value}, which JSON cannot hold", field)
        case Mapping():
            for name, item in value.items():
                _check_plain(name, field)
                _check_plain(item, f"{field}.{name}")
        case list() | tuple():
            for n, item in enumerate(value):
                _check_plain(item, f"{field}[{n}]")
