"""The write side: append events and hand over messages in the transaction you already have open.

>>> from outbox import NewEvent, append
>>> with psycopg.connect(dsn) as connection:                        # doctest: +SKIP
...     connection.execute("UPDATE customer SET city = 'Paris' WHERE id = 42")
...     append(connection, "customer-42", NewEvent("entity.patched", {"properties": {"city": "Paris"}}))

Names are loaded when first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outbox.lazily import lazily

if TYPE_CHECKING:
    from outbox.codec import Registry
    from outbox.errors import (
        AppendError,
        BrokerUnavailable,
        DatabaseError,
        DuplicateEvent,
        InvalidEvent,
        OutboxError,
        SchemaError,
        SettingsError,
        StoreUnavailable,
        UnknownEventType,
        VersionConflict,
        WaitTimeout,
    )
    from outbox.event import Event, NewEvent
    from outbox.log.append import append, append_async, send, send_async
    from outbox.log.migrate import migrate
    from outbox.log.read import read_all, read_category, read_stream
    from outbox.log.statement import Appended, Token
    from outbox.relay.relay import Relay, RelaySettings

__version__ = "0.1.0"

_HOMES = {
    "outbox.codec": ("Registry",),
    "outbox.errors": (
        "AppendError",
        "BrokerUnavailable",
        "DatabaseError",
        "DuplicateEvent",
        "InvalidEvent",
        "OutboxError",
        "SchemaError",
        "SettingsError",
        "StoreUnavailable",
        "UnknownEventType",
        "VersionConflict",
        "WaitTimeout",
    ),
    "outbox.event": ("Event", "NewEvent"),
    "outbox.log.append": ("append", "append_async", "send", "send_async"),
    "outbox.log.migrate": ("migrate",),
    "outbox.log.read": ("read_all", "read_category", "read_stream"),
    "outbox.log.statement": ("Appended", "Token"),
    "outbox.relay.relay": ("Relay", "RelaySettings"),
}

__all__ = [
    "AppendError",
    "Appended",
    "BrokerUnavailable",
    "DatabaseError",
    "DuplicateEvent",
    "Event",
    "InvalidEvent",
    "NewEvent",
    "OutboxError",
    "Registry",
    "Relay",
    "RelaySettings",
    "SchemaError",
    "SettingsError",
    "StoreUnavailable",
    "Token",
    "UnknownEventType",
    "VersionConflict",
    "WaitTimeout",
    "append",
    "append_async",
    "migrate",
    "read_all",
    "read_category",
    "read_stream",
    "send",
    "send_async",
]

__getattr__, __dir__ = lazily(__name__, _HOMES, __all__)
