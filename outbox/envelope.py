"""How an event travels through a broker: key = stream, value = Avro as in the log, the rest in headers.

Header names: ``id type version position at meta``, and ``correlation_id causation_id traceparent`` when the
producer's meta has them, so that tracing tools find them without reading ours. Values are UTF-8 text.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from outbox.broker.protocol import Delivery, Message
from outbox.errors import InvalidEvent
from outbox.event import Event, category_of

if TYPE_CHECKING:
    from outbox.codec import Registry

OWN_HEADERS: Final = ("correlation_id", "causation_id", "traceparent")


def topic_of(prefix: str, category: str) -> str:
    """The topic of a category's events."""
    return f"{prefix}.{category}"


def event_message(
    prefix: str,
    stream: str,
    version: int,
    type_: str,
    data: bytes,
    id_: uuid.UUID,
    position: int,
    at: datetime,
    meta: Mapping[str, Any],
) -> Message:
    """The message of one event of the log."""
    headers = [
        ("id", orjson.dumps(id_)[1:-1]),  # without its quotes: a third of what str and isoformat take
        ("type", type_.encode()),
        ("version", b"%d" % version),
        ("position", b"%d" % position),
        ("at", orjson.dumps(at)[1:-1]),
    ]
    if meta:
        headers.append(("meta", orjson.dumps(meta)))
        headers += [(name, str(meta[name]).encode()) for name in OWN_HEADERS if meta.get(name) is not None]
    return Message(topic_of(prefix, category_of(stream)), stream, data, headers)


def plain_message(topic: str, key: str, headers: Mapping[str, Any] | None, payload: bytes | None) -> Message:
    """The message of an outbox row that has no event."""
    return Message(topic, key, payload, [(n, str(v).encode()) for n, v in (headers or {}).items()])


def version_in(delivery: Delivery) -> int:
    """The stream version a delivery carries; raises :class:`~outbox.errors.InvalidEvent` if it is no event."""
    try:
        return int(delivery.headers["version"])
    except (KeyError, ValueError) as error:
        raise InvalidEvent(
            f"message {delivery.topic}/{delivery.partition}@{delivery.offset} has no header 'version': not an event"
        ) from error


def read_event(delivery: Delivery, registry: Registry) -> Event:
    """The event a delivery carries. Raises :class:`~outbox.errors.InvalidEvent`."""
    headers, version = delivery.headers, version_in(delivery)
    try:
        type_ = headers["type"].decode()
        id_ = uuid.UUID(headers["id"].decode())
        position = int(headers["position"])
        at = datetime.fromisoformat(headers["at"].decode())
        meta = _meta(headers.get("meta", b"{}"))
    except (KeyError, ValueError) as error:
        raise InvalidEvent(
            f"message {delivery.topic}/{delivery.partition}@{delivery.offset} is not an event: {error}"
        ) from error
    return Event(delivery.key, version, type_, registry.decode(type_, delivery.value or b""), id_, position, at, meta)


def _meta(text: bytes) -> Mapping[str, Any]:
    meta = orjson.loads(text)
    if not isinstance(meta, dict):
        raise ValueError(f"header 'meta' is no JSON object but a {type(meta).__name__}")  # noqa: TRY004 - as bad JSON is
    return meta
