"""A producer over librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from outbox.broker.librdkafka import opened, refused, unavailable
from outbox.broker.protocol import Outgoing, Places, TopicPartition
from outbox.broker.publishing import KafkaProducer, ServersRefused
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import Topics, encode_key
from outbox.errors import MessageRefused

QUEUE_MESSAGES_MAX: Final = 200_000
QUEUE_KIB_MAX: Final = 256 * 1024
BATCH_BYTES_MAX: Final = 1_000_000
ROOM_WAIT_S: Final = 0.05
CLOSE_WAIT_S: Final = 1.0

GAP: Final = "_GAPLESS_GUARANTEE"
"""The fatal error by which librdkafka gives up a partition rather than send what comes after a refused message."""

Report = Callable[[Any, Any], None]


class Lane:
    """What librdkafka reported of the messages of one partition: each error, and the last one that arrived.

    A report calls no code of ours, it is put into a dictionary under its error, which is None for what arrived.
    Reports of one partition come in the order produced (an idempotent producer keeps it), so the last one stands.
    """

    __slots__ = ("_reports", "report")

    def __init__(self) -> None:
        self._reports: dict[Any, Any] = {}
        self.report: Report = self._reports.__setitem__

    @property
    def errors(self) -> list[Any]:
        """Those of one code are one."""
        return [error for error in self._reports if error is not None]

    @property
    def last(self) -> int | None:
        """The offset of the last message that arrived; None if none did."""
        message = self._reports.get(None)
        return None if message is None else message.offset()


Lanes = dict[tuple[str, int], Lane]


def root(error: BaseException) -> BaseException:
    """What stands behind the SystemError that confluent-kafka may put round a fatal error."""
    while isinstance(error, SystemError) and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__ or error
    return error


class ConfluentProducer(KafkaProducer):
    """See :class:`~outbox.broker.publishing.KafkaProducer`."""

    def __init__(self, library: Any, options: dict[str, Any], settings: KafkaSettings, topics: Topics) -> None:
        super().__init__(topics)
        self._library = library
        self._settings = settings
        self._options = options | {
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "message.timeout.ms": 0,
            "compression.type": settings.compression,
            "linger.ms": settings.linger_ms,
            "message.max.bytes": settings.max_message_bytes,
            "batch.size": min(BATCH_BYTES_MAX, settings.max_message_bytes),
            "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
            "queue.buffering.max.kbytes": QUEUE_KIB_MAX,
        }
        self._producer: Any = None

    def attempt(self, messages: Sequence[Outgoing]) -> Places:
        until = time.monotonic() + self._settings.timeout_s
        partitions = self._topics.ensure(message.topic for message in messages)
        self._open()
        lanes, refusal = self._send(messages, partitions, until)
        self._flush(until)
        placed = self._placed(lanes)
        if refusal:
            raise refusal
        return placed

    def _send(
        self, messages: Sequence[Outgoing], partitions: dict[str, int], until: float
    ) -> tuple[Lanes, Exception | None]:
        """Hand over messages up to the first one that the client refuses; the lanes they went to."""
        murmur2, send = self._library.murmur2, self._producer.produce
        lanes: Lanes = defaultdict(Lane)
        for index, message in enumerate(messages):
            topic = message.topic
            try:
                key, headers = message.key.encode(), message.headers
                headers = headers if type(headers) is list else [*headers]  # the client takes nothing else
                number = murmur2(key, partitions[topic])
                lane = lanes[topic, number]
                try:
                    send(topic, message.value, key, number, lane.report, headers=headers)
                except BufferError:
                    self._send_when_room(
                        partial(send, topic, message.value, key, number, lane.report, headers=headers), until
                    )
            except (UnicodeEncodeError, self._library.KafkaException) as error:
                return lanes, self._client_refusal(error, message, index)
        return lanes, None

    def _send_when_room(self, send: Callable[[], None], until: float) -> None:
        while time.monotonic() < until:
            try:
                self._producer.poll(ROOM_WAIT_S)
            except (self._library.KafkaException, SystemError) as error:  # as in a flush
                raise self._fatal(error) from error
            with contextlib.suppress(BufferError):
                return send()
        raise unavailable(self._settings, "the queue stayed full")

    def _client_refusal(self, error: Exception, message: Outgoing, index: int) -> Exception:
        """What to raise unless the flush knows better: of a fatal error, which ends the client in the midst of a batch,
        the reason is told there."""
        encode_key(message, index)
        reason = error.args[0]
        if not refused(reason):
            return unavailable(self._settings, reason.str())
        return MessageRefused(f"message {index} for topic {message.topic!r} is refused: {reason.str()}", index)

    def _flush(self, until: float) -> None:
        """A fatal error is raised here, by confluent-kafka itself, and as a SystemError if reports came after it."""
        try:
            left = self._producer.flush(max(0.0, until - time.monotonic()))
        except (self._library.KafkaException, SystemError) as error:
            raise self._fatal(error) from error
        if left:
            raise unavailable(self._settings, f"not acknowledged within {self._settings.timeout_s:g} s")

    def _fatal(self, error: BaseException) -> Exception:
        error = root(error)
        if isinstance(error, self._library.KafkaException) and error.args[0].name() == GAP:
            return ServersRefused(error.args[0].str())
        return unavailable(self._settings, str(error))

    def _placed(self, lanes: Lanes) -> Places:
        failed = [error for lane in lanes.values() for error in lane.errors]
        if failed:
            raise self._failure(failed)
        # A lane whose first message the client refused is empty.
        return {TopicPartition(*place): lane.last for place, lane in lanes.items() if lane.last is not None}

    def _failure(self, failed: Sequence[Any]) -> Exception:
        """A refusal among the errors is the cause of the others, which librdkafka gives up for the sake of order."""
        cause = next((error for error in failed if refused(error)), None)
        if cause is not None:
            return ServersRefused(cause.str())
        return unavailable(self._settings, failed[0].str())

    def _open(self) -> None:
        if self._producer is None:
            self._producer = opened(self._library, lambda: self._library.Producer(self._options))

    def discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # What is in flight is a gap by librdkafka's lights; the servers drop what would follow one.
            try:
                producer.purge(in_queue=True, in_flight=True, blocking=True)
                producer.flush(CLOSE_WAIT_S)
            except (self._library.KafkaException, SystemError):
                # A flush that has raised keeps the producer for good, with its threads and connections
                # (confluent-kafka 2.16); releases that have no ``close`` are not known to.
                with contextlib.suppress(self._library.KafkaException, SystemError, AttributeError):
                    producer.close(CLOSE_WAIT_S)
