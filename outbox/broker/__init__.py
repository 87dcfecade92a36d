"""Brokers: Kafka through two clients, and PostgreSQL itself for the embedded mode; one protocol for all."""

from outbox.broker.kafka import open_kafka
from outbox.broker.local import LocalBroker
from outbox.broker.local_settings import LocalSettings
from outbox.broker.protocol import Broker, Consumer, Delivery, Message, Producer, Start, TopicPartition, Transactions
from outbox.broker.settings import KafkaSettings

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
