"""A producer over kafka-python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from kafka import KafkaProducer as Client
from kafka import errors
from kafka.partitioner import murmur2

from outbox.broker.kafka_python_errors import (
    REFUSED,
    compression,
    one_line,
    opened,
    translated,
    unavailable,
)
from outbox.broker.protocol import Outgoing, Places, TopicPartition
from outbox.broker.publishing import KafkaProducer, ServersRefused
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import Topics, encode_key
from outbox.errors import MessageRefused

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


class KafkaPythonProducer(KafkaProducer):
    """See :class:`~outbox.broker.publishing.KafkaProducer`."""

    def __init__(self, settings: KafkaSettings, topics: Topics) -> None:
        super().__init__(topics)
        self._settings = settings
        self._producer: Any = None

    def attempt(self, messages: Sequence[Outgoing]) -> Places:
        until = time.monotonic() + self._settings.timeout_s
        partitions = self._topics.ensure([message.topic for message in messages])
        with translated(self._settings):
            self._open()
            sent, refusal = self._send(messages, partitions)
            self._flush(sent, until)
        placed = self._placed(sent)
        if refusal:
            raise refusal
        return placed

    def _send(
        self, messages: Sequence[Outgoing], partitions: dict[str, int]
    ) -> tuple[list[Any], MessageRefused | None]:
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

    def _flush(self, sent: Sequence[Any], until: float) -> None:
        """Bounded as a whole: the client's own flush bounds the wait for each batch alone."""
        with contextlib.suppress(errors.UnknownError):  # its answer to a batch that it had to split meanwhile
            self._producer.flush(max(0.0, until - time.monotonic()))
        for future in sent:
            if not future.is_done:
                self._wait(future, until)

    def _wait(self, future: Any, until: float) -> None:
        with contextlib.suppress(errors.BrokerResponseError):  # looked at with all the others
            future.get(timeout=max(0.0, until - time.monotonic()))

    def _placed(self, sent: Sequence[Any]) -> Places:
        failed = [future.exception or "not acknowledged" for future in sent if not future.succeeded()]
        if failed:
            raise self._failure(failed)
        last = {future.value.topic_partition: future.value.offset for future in sent}
        return {TopicPartition(*partition): offset for partition, offset in last.items()}

    def _failure(self, failed: Sequence[Any]) -> Exception:
        """A refusal is fatal to this client: batches of other partitions fail with the same error."""
        cause = next((error for error in failed if isinstance(error, REFUSED)), None)
        if cause is not None:
            return ServersRefused(one_line(cause))
        return unavailable(self._settings, failed[0])

    def _open(self) -> None:
        if self._producer is None:
            self._producer = self._new()

    def _new(self, **more: Any) -> Any:
        return opened(
            Client,
            self._settings,
            enable_idempotence=True,
            acks="all",
            compression_type=compression(self._settings),
            linger_ms=self._settings.linger_ms,
            batch_size=min(BATCH_BYTES, self._settings.max_message_bytes),
            max_request_size=self._settings.max_message_bytes,
            max_block_ms=self._settings.timeout_ms,
            delivery_timeout_ms=NEVER_MS,
            metrics_enabled=False,
            **more,
        )

    def discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # close() alone flushes first and, when that is out of time, leaves the sending thread at work.
            producer._sender.force_close()  # noqa: SLF001
            with contextlib.suppress(errors.KafkaError):
                producer.close(timeout=CLOSE_WAIT_S)
