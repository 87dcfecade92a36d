"""How an event travels through a broker: key = stream, value = Avro as in the log, the rest in headers.

Header names: ``id type version position at meta``, and ``correlation_id causation_id traceparent`` when the
producer's meta has them, so that tracing tools find them without reading ours. Values are UTF-8 text.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from outbox.broker.protocol import Delivery
from outbox.errors import InvalidEvent
from outbox.event import Event, time_of

if TYPE_CHECKING:
    from outbox.codec import Registry

Headers: TypeAlias = list[tuple[str, bytes]]

OWN_HEADERS: Final = ("correlation_id", "causation_id", "traceparent")


def topic_of(prefix: str, category: str) -> str:
    """The topic of a category's events."""
    return f"{prefix}.{category}"


def event_headers(
    id_: str, type_: str, version: int, position: int, at_us: int, meta: Mapping[str, Any] | None
) -> Headers:
    """The headers of an event of the log that was appended ``at_us`` microseconds after 2000-01-01 UTC."""
    headers = [
        ("id", id_.encode()),
        ("type", type_.encode()),
        ("version", b"%d" % version),
        ("position", b"%d" % position),
        ("at", _time(at_us)),
    ]
    if meta:
        headers.append(("meta", orjson.dumps(meta)))
        headers += [(name, str(meta[name]).encode()) for name in OWN_HEADERS if meta.get(name) is not None]
    return headers


def plain_headers(headers: Mapping[str, Any] | None) -> Headers:
    """The headers of an outbox row that has no event."""
    return [(name, str(value).encode()) for name, value in (headers or {}).items()]


def _time(at_us: int) -> bytes:
    """As ``isoformat`` has it, which leaves out microseconds if there are none."""
    second, us = divmod(at_us, 1_000_000)
    return b"%b.%06d+00:00" % (_second(second), us) if us else b"%b+00:00" % _second(second)


@lru_cache(maxsize=1024)
def _second(second: int) -> bytes:
    return time_of(second * 1_000_000).replace(tzinfo=None).isoformat().encode()


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
