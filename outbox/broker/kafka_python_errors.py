"""Opening clients of kafka-python, and telling their errors apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from kafka import codec, errors
from kafka.net.compat import KafkaNetClient

from outbox.broker.settings import KafkaSettings
from outbox.errors import BrokerError, BrokerUnavailable, MemberFenced, SettingsError
from outbox.logs import logger

log: Final = logger("outbox.broker")

RECONNECT_BACKOFF_MAX_MS: Final = 1_000
"""The client's own 30 s would be felt after every restart of a server."""

IDLE_MIN_MS: Final = 540_000
"""The client's own limit on connections at rest. It wants one above the longest wait for an answer."""

SECURITY_NAMES: Final = {
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
}
"""librdkafka's names to kafka-python's, where they are more than a change of punctuation."""

REFUSED: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidRecordError,
    errors.InvalidTimestampError,
    errors.InvalidTopicError,
    errors.AuthorizationError,
    errors.PolicyViolationError,
    errors.UnsupportedCompressionTypeError,
)
"""Errors that trying again does not mend."""

CODECS: Final[dict[str, tuple[Callable[[], bool], str]]] = {
    "lz4": (codec.has_lz4, "lz4"),
    "snappy": (codec.has_snappy, "python-snappy"),
    "zstd": (codec.has_zstd, "zstandard"),
}
"""Codecs that need a package beside kafka-python: whether it is there, and its name."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """What producers, consumers and admin clients take alike."""
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap.split(",")],
        "bootstrap_timeout_ms": settings.timeout_ms,
        **waiting(settings.timeout_ms),
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
        **{SECURITY_NAMES.get(name, name.replace(".", "_")): value for name, value in settings.security.items()},
    }


def waiting(longest_ms: int) -> dict[str, int]:
    """The options of a client that waits for an answer for so long."""
    return {"request_timeout_ms": longest_ms, "connections_max_idle_ms": max(IDLE_MIN_MS, 2 * longest_ms)}


def opened(kind: Callable[..., Any], settings: KafkaSettings, **options: Any) -> Any:
    """A client of that kind: producer, consumer or admin client. One that cannot be made leaves nothing behind.

    The clients' constructors start a thread and connect before they can fail, and do not end it then (3.0). It would go
    on connecting for as long as the process lives, one more with every try.
    """
    begun: list[KafkaNetClient] = []

    def network(**given: Any) -> KafkaNetClient:
        begun.append(KafkaNetClient(**given))
        return begun[-1]

    try:
        return kind(**connection_options(settings) | options, kafka_client=network)
    except BaseException:
        for client in begun:
            client.close()
        raise


def compression(settings: KafkaSettings) -> str | None:
    """The codec to produce with: the wanted one, or none, with a warning, if its package is missing."""
    if settings.compression == "none":
        return None
    present, package = CODECS.get(settings.compression, (codec.has_gzip, ""))
    if present():
        return settings.compression
    log.warning("broker.uncompressed", wanted=settings.compression, reason=f"run `pip install {package}`")
    return None


@contextmanager
def translated(settings: KafkaSettings) -> Iterator[None]:
    """Raise kafka-python's errors as ours: what passes by itself as BrokerUnavailable, what a person must
    mend as SettingsError or BrokerError, a name that was taken as MemberFenced."""
    try:
        yield
    except errors.KafkaConfigurationError as error:
        raise SettingsError(f"kafka: {one_line(error)}") from error
    except errors.UnsupportedCodecError as error:
        names = ", ".join(package for _, package in CODECS.values())
        raise BrokerError(f"a message's compression needs one of the packages {names}: {one_line(error)}") from error
    except errors.FencedInstanceIdError as error:
        raise MemberFenced(settings.bootstrap, settings.member) from error
    except errors.InvalidSessionTimeoutError as error:
        raise settings.session_refused() from error
    except REFUSED as error:
        raise BrokerError(f"Kafka at {settings.bootstrap} refuses: {one_line(error)}") from error
    except (errors.KafkaError, OSError) as error:
        raise unavailable(settings, error) from error


def unavailable(settings: KafkaSettings, error: Exception | str) -> BrokerUnavailable:
    """One line that names the address."""
    return BrokerUnavailable(f"Kafka at {settings.bootstrap} cannot be used: {one_line(error)}")


def one_line(error: Exception | str) -> str:
    """An error's text without its line ends."""
    return " ".join(str(error).split()) or type(error).__name__
