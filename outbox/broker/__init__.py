"""Brokers: Kafka through two clients, and PostgreSQL itself for the embedded mode; one protocol for all.

Names are loaded when first used: who reads the settings of one broker need not wait for the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outbox.lazily import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOMES, __all__)
