"""Kafka, through whichever client there is."""

from __future__ import annotations

from importlib.util import find_spec

from outbox.broker.protocol import Broker
from outbox.broker.settings import KafkaSettings


def open_kafka(settings: KafkaSettings) -> Broker:
    """The broker of ``settings``; nothing is connected before it is used.

    ``client="auto"`` takes confluent-kafka if it is installed (four times the rate), else kafka-python.
    Raises :class:`~outbox.errors.SettingsError` if the client or the codec's library is missing.
    """
    if settings.client == "confluent" or (settings.client == "auto" and find_spec("confluent_kafka")):
        from outbox.broker.confluent import ConfluentBroker

        return ConfluentBroker(settings)
    from outbox.broker.kafka_python import KafkaPythonBroker

    return KafkaPythonBroker(settings)
