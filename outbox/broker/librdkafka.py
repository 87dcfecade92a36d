"""Loading confluent-kafka, and telling its errors apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from outbox.broker.settings import KafkaSettings
from outbox.errors import BrokerUnavailable, SettingsError
from outbox.extras import how_to_install

REFUSED = (
    "MSG_SIZE_TOO_LARGE",
    "INVALID_MSG_SIZE",
    "RECORD_LIST_TOO_LARGE",
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "TOPIC_EXCEPTION",
    "TOPIC_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "POLICY_VIOLATION",
    "UNSUPPORTED_COMPRESSION_TYPE",
)
"""Names of the errors that trying again does not mend."""


def load_library() -> Any:
    """The module ``confluent_kafka``. Raises :class:`~outbox.errors.SettingsError` if it is missing."""
    try:
        return import_module("confluent_kafka")
    except ImportError as error:
        raise SettingsError(
            f"kafka.client is 'confluent' but confluent-kafka is not installed: {how_to_install('confluent')},"
            " or set it to 'kafka-python'"
        ) from error


def opened(library: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` returns. Raises :class:`~outbox.errors.SettingsError` for an option librdkafka refuses."""
    try:
        return make()
    except library.KafkaException as error:
        raise SettingsError(f"kafka: {error.args[0].str()}") from error


def answer(ask: Callable[[], Mapping[Any, Any]], timeout_s: float) -> Any:
    """What the one future gives that ``ask`` returns under a name.

    No frame of ours may have the future when it fails: it keeps its error, the error the frames, and these the client
    that was asked, with its threads and connections, until Python collects.
    """
    return next(iter(ask().values())).result(timeout_s)


def refused(error: Any) -> bool:
    """Whether a ``KafkaError`` is for good."""
    return error.name() in REFUSED


def unavailable(settings: KafkaSettings, reason: str) -> BrokerUnavailable:
    """One line that names the address."""
    return BrokerUnavailable(f"Kafka at {settings.bootstrap} cannot be used: {reason}")
