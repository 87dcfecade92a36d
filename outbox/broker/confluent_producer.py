"""A producer over librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from outbox.broker.librdkafka import opened, refused, unavailable
from outbox.broker.protocol import Message, Places, TopicPartition
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
    """What librdkafka reported of one partition, in the order sent: an offset, or an error.

    Reports of one partition come in the order produced (an idempotent producer keeps it), so an append is
    all that a message costs.
    """

    __slots__ = ("partition", "report", "reports")

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.reports: list[Any] = []
        append = self.reports.append

        def report(error: Any, message: Any) -> None:
            append(message.offset() if error is None else error)

        self.report: Report = report


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

    def attempt(self, messages: Sequence[Message]) -> Places:
        until = time.monotonic() + self._settings.timeout_s
        partitions = self._topics.ensure([message.topic for message in messages])
        self._open()
        sent, refusal = self._send(messages, partitions, until)
        self._flush(until)
        placed = self._placed(sent)
        if refusal:
            raise refusal
        return placed

    def _send(
        self, messages: Sequence[Message], partitions: dict[str, int], until: float
    ) -> tuple[list[Lane], MessageRefused | None]:
        """Hand over messages up to the first one that the client refuses; the lane of each."""
        murmur2, send = self._library.murmur2, self._producer.produce
        lanes: dict[tuple[str, int], Lane] = {}
        sent: list[Lane] = []
        for index, message in enumerate(messages):
            topic = message.topic
            try:
                key = message.key.encode()
                number = murmur2(key, partitions[topic])
                lane = lanes.get((topic, number)) or self._lane(lanes, topic, number)
                send(topic, message.value, key, number, lane.report, headers=[*message.headers])
            except BufferError:
                self._send_when_room(message, number, lane, until)
            except (UnicodeEncodeError, self._library.KafkaException) as error:
                return sent, self._client_refusal(error, message, index)
            sent.append(lane)
        return sent, None

    @staticmethod
    def _lane(lanes: dict[tuple[str, int], Lane], topic: str, number: int) -> Lane:
        lane = lanes[topic, number] = Lane(TopicPartition(topic, number))
        return lane

    def _send_when_room(self, message: Message, number: int, lane: Lane, until: float) -> None:
        while time.monotonic() < until:
            self._producer.poll(ROOM_WAIT_S)
            try:
                self._producer.produce(
                    message.topic, message.value, message.key.encode(), number, lane.report, headers=[*message.headers]
                )
            except BufferError:
                continue
            return
        raise unavailable(self._settings, "the queue stayed full")

    def _client_refusal(self, error: Exception, message: Message, index: int) -> MessageRefused:
        encode_key(message, index)
        reason = error.args[0]
        if not refused(reason):
            raise unavailable(self._settings, reason.str()) from error
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

    def _placed(self, sent: Sequence[Lane]) -> Places:
        lanes = set(sent)
        failed = [report for lane in lanes for report in lane.reports if type(report) is not int]
        if failed:
            raise self._failure(failed)
        return {lane.partition: lane.reports[-1] for lane in lanes}

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
            with contextlib.suppress(self._library.KafkaException, SystemError):
                producer.purge(in_queue=True, in_flight=True, blocking=True)
                producer.flush(CLOSE_WAIT_S)
