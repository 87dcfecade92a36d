"""A producer over kafka-python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from kafka import KafkaProducer, errors
from kafka.partitioner import murmur2

from outbox.broker.kafka_python_errors import (
    REFUSED,
    compression,
    connection_options,
    one_line,
    translated,
    unavailable,
)
from outbox.broker.protocol import Message, TopicPartition
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused, Topics, encode_key, first_refused
from outbox.errors import BrokerUnavailable, MessageRefused

BATCH_BYTES: Final = 256 * 1024
"""kafka-python pays per batch; its own 16 KiB holds 35 messages of 450 bytes."""

NEVER_MS: Final = 2**31 - 1
HASHES_CACHED_MAX: Final = 65_536
"""The hash costs about 5 us in Python, and the same streams come again and again."""

CLOSE_WAIT_S: Final = 2.0


@lru_cache(HASHES_CACHED_MAX)
def hash_of(key: bytes) -> int:
    """Murmur2 without its sign, as Java's default partitioner takes it."""
    return int(murmur2(key)) & 0x7FFFFFFF


class KafkaPythonProducer:
    """See :class:`outbox.broker.protocol.Producer`.

    As with librdkafka (see :class:`~outbox.broker.confluent_producer.ConfluentProducer`) no message may expire
    by itself: a publish that is out of time throws everything away at once.
    """

    def __init__(self, settings: KafkaSettings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics
        self._producer: Any = None

    def publish(self, messages: Sequence[Message]) -> Sequence[tuple[TopicPartition, int]]:
        """See the protocol. What the servers themselves refuse (the client cannot know a topic's own limits
        and rights) is found only after later messages of the batch were sent."""
        try:
            return self._publish(messages)
        except TopicRefused as error:
            refusal = first_refused(messages, error)
            self.publish(messages[: refusal.index])
            raise refusal from error
        except MessageRefused:
            raise
        except BrokerUnavailable:
            self._topics.forget()
            self._discard()
            raise
        except BaseException:
            self._discard()
            raise

    def close(self) -> None:
        """Every publish has been acknowledged or given up, so nothing is waited for."""
        self._discard()

    def _publish(self, messages: Sequence[Message]) -> Sequence[tuple[TopicPartition, int]]:
        if not messages:
            return []
        until = time.monotonic() + self._settings.timeout_s
        partitions = self._topics.ensure([message.topic for message in messages])
        with translated(self._settings):
            self._open()
            sent, refusal = self._send(messages, partitions)
            self._flush(until)
        placed = [self._placed(index, future) for index, future in enumerate(sent)]
        if refusal:
            raise refusal
        return placed

    def _send(self, messages: Sequence[Message], partitions: dict[str, int]) -> tuple[list[Any], MessageRefused | None]:
        """Hand over messages up to the first one that the client refuses; the future of each."""
        send = self._producer.send
        sent: list[Any] = []
        for index, message in enumerate(messages):
            try:
                key = message.key.encode()
                number = hash_of(key) % partitions[message.topic]
                sent.append(send(message.topic, message.value, key, [*message.headers], number))
            except (UnicodeEncodeError, *REFUSED) as error:
                encode_key(message, index)
                return sent, MessageRefused(f"message {index} is refused: {one_line(error)}", index)
        return sent, None

    def _flush(self, until: float) -> None:
        """Bounded as a whole: the client's own flush bounds the wait for each batch alone."""
        self._producer.flush(max(0.0, until - time.monotonic()))
        if time.monotonic() > until:
            raise errors.KafkaTimeoutError(f"not acknowledged within {self._settings.timeout_s:g} s")

    def _placed(self, index: int, future: Any) -> tuple[TopicPartition, int]:
        if future.succeeded():
            metadata = future.value
            return TopicPartition(metadata.topic, metadata.partition), metadata.offset
        if isinstance(future.exception, REFUSED):
            raise MessageRefused(f"message {index} is refused: {one_line(future.exception)}", index)
        raise unavailable(self._settings, future.exception or "not acknowledged")

    def _open(self) -> None:
        if self._producer is None:
            self._producer = KafkaProducer(
                **connection_options(self._settings),
                enable_idempotence=True,
                acks="all",
                compression_type=compression(self._settings),
                linger_ms=self._settings.linger_ms,
                batch_size=min(BATCH_BYTES, self._settings.max_message_bytes),
                max_request_size=self._settings.max_message_bytes,
                max_block_ms=self._settings.timeout_ms,
                delivery_timeout_ms=NEVER_MS,
                metrics_enabled=False,
            )

    def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # close() alone flushes first and, when that is out of time, leaves the sending thread at work.
            producer._sender.force_close()  # noqa: SLF001
            with contextlib.suppress(errors.KafkaError):
                producer.close(timeout=CLOSE_WAIT_S)
