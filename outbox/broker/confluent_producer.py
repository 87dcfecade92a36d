"""A producer over librdkafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from outbox.broker.librdkafka import opened, refused, unavailable
from outbox.broker.protocol import Message, TopicPartition
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused, Topics, encode_key, first_refused
from outbox.errors import BrokerUnavailable, MessageRefused

QUEUE_MESSAGES_MAX: Final = 200_000
QUEUE_KIB_MAX: Final = 256 * 1024
BATCH_BYTES_MAX: Final = 1_000_000
ROOM_WAIT_S: Final = 0.05
CLOSE_WAIT_S: Final = 1.0

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


class ConfluentProducer:
    """See :class:`outbox.broker.protocol.Producer`.

    librdkafka would give up single messages that waited too long and go on with later ones, which would turn
    their order round when the batch is published again. So messages never expire by themselves: a publish
    that is out of time throws everything away at once, with the connection.
    """

    def __init__(self, library: Any, options: dict[str, Any], settings: KafkaSettings, topics: Topics) -> None:
        self._library = library
        self._settings = settings
        self._topics = topics
        self._options = options | {
            "enable.idempotence": True,
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
        self._open()
        sent, refusal = self._send(messages, partitions, until)
        if self._producer.flush(max(0.0, until - time.monotonic())):
            raise unavailable(self._settings, f"not acknowledged within {self._settings.timeout_s:g} s")
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

    def _placed(self, sent: Sequence[Lane]) -> list[tuple[TopicPartition, int]]:
        following = {lane: iter(lane.reports).__next__ for lane in set(sent)}
        placed = [(lane.partition, following[lane]()) for lane in sent]
        failed = [(i, report) for i, (_, report) in enumerate(placed) if type(report) is not int]
        if failed:
            raise self._failure(failed)
        return placed

    def _failure(self, failed: Sequence[tuple[int, Any]]) -> Exception:
        index, error = failed[0]
        if refused(error):
            return MessageRefused(f"message {index} is refused: {error.str()}", index)
        return unavailable(self._settings, error.str())

    def _open(self) -> None:
        if self._producer is None:
            self._producer = opened(self._library, lambda: self._library.Producer(self._options))

    def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.flush(CLOSE_WAIT_S)
