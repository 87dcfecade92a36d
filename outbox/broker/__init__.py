"""Brokers: Kafka through two clients, and PostgreSQL itself for the embedded mode; one protocol for all.

Names are loaded when first used: who reads the settings of one broker need not wait for the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.broker.kafka import open_kafka
    from outbox.broker.local import LocalBroker
    from outbox.broker.local_settings import LocalSettings
    from outbox.broker.protocol import (
        Broker,
        Consumer,
        Delivery,
        Message,
        Producer,
        Start,
        TopicPartition,
        Transactions,
    )
    from outbox.broker.settings import KafkaSettings

_PROTOCOL = ("Broker", "Consumer", "Delivery", "Message", "Producer", "Start", "TopicPartition", "Transactions")
_HOMES = {
    "outbox.broker.kafka": ("open_kafka",),
    "outbox.broker.local": ("LocalBroker",),
    "outbox.broker.local_settings": ("LocalSettings",),
    "outbox.broker.protocol": _PROTOCOL,
    "outbox.broker.settings": ("KafkaSettings",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Broker",
    "Consumer",
    "Delivery",
    "KafkaSettings",
    "LocalBroker",
    "LocalSettings",
    "Message",
    "Producer",
    "Start",
    "TopicPartition",
    "Transactions",
    "open_kafka",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
