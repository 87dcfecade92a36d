"""The write side: append events and hand over messages in the transaction you already have open.

>>> from outbox import NewEvent, append
>>> with psycopg.connect(dsn) as connection:                        # doctest: +SKIP
...     connection.execute("UPDATE customer SET city = 'Paris' WHERE id = 42")
...     append(connection, "customer-42", NewEvent("entity.patched", {"properties": {"city": "Paris"}}))

Names are loaded when first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
