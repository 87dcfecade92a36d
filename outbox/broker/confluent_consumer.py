"""A member of a consumer group over librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from outbox.broker.confluent_member import Name
from outbox.broker.librdkafka import opened, unavailable
from outbox.broker.protocol import Delivery, Start, TopicPartition
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import decode_headers, decode_key
from outbox.errors import BrokerError, MemberFenced
from outbox.logs import logger

log: Final = logger("outbox.broker")

FETCH_MAX: Final = 1_000_000
"""librdkafka hands out at most this many messages at once."""
QUEUE_KIB_MAX: Final = 32 * 1024
"""Fetched and not yet polled, over all partitions."""
HEARTBEATS_PER_SESSION: Final = 3
PROBE_EVERY_S: Final = 5.0
"""While nothing comes, the servers are asked this often whether they are there."""
PROBE_WAIT_S: Final = 5.0


class ConfluentConsumer:
    """See :class:`outbox.broker.protocol.Consumer`. Partitions are shared out by range, as the other client does,
    so that a group may have members of both."""

    def __init__(
        self,
        library: Any,
        options: Mapping[str, Any],
        settings: KafkaSettings,
        group: str,
        topics: Sequence[str],
        start: Start,
    ) -> None:
        self._library = library
        self._settings = settings
        self._topics = list(topics)
        self._start = start
        self._starts: dict[TopicPartition, int] = {}
        """Where each partition was last assigned."""
        self._pending: Sequence[TopicPartition] = ()
        self._lost: set[TopicPartition] = set()
        self._failure: Exception | None = None
        self._fenced: MemberFenced | None = None
        """Never put back: librdkafka does nothing more after it."""
        self._down: str | None = None
        self._heard_at = time.monotonic()
        session_ms = int(settings.session_timeout_s * 1000)
        self._options = dict(options) | {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "range",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": session_ms // HEARTBEATS_PER_SESSION,
            "max.poll.interval.ms": int(max(settings.poll_interval_max_s, settings.session_timeout_s) * 1000),
            "queued.max.messages.kbytes": QUEUE_KIB_MAX,
            "error_cb": self._on_error,
        }
        self._name: Name | None = None
        self._outside = False
        """Out of its group, and not to go back before it is known that nobody has taken its name."""
        if settings.member is not None:
            self._options["group.instance.id"] = settings.member
            self._name = Name(library, options, settings, group)
        self._leaving = False
        self._consumer: Any = None
        self._open()

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """See the protocol."""
        if self._outside:
            self._return()
        if self._pending:
            self._begin()
        deliveries = self._deliveries(self._fetch(min(max_messages, FETCH_MAX), timeout_s))
        if self._fenced is not None:
            raise self._fenced
        if self._lost:
            self._assign_again()
        if deliveries:
            self._down, self._heard_at = None, time.monotonic()
        else:
            self._raise_if_failed()
        return deliveries

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Sent without waiting for the answer."""
        positions = [self._library.TopicPartition(tp.topic, tp.partition, at) for tp, at in offsets.items()]
        if positions and self._consumer is not None:
            with contextlib.suppress(self._library.KafkaException):
                self._consumer.commit(offsets=positions, asynchronous=True)

    def assignment(self) -> frozenset[TopicPartition]:
        """As of the last poll."""
        return frozenset(self._starts)

    def close(self) -> None:
        """Leave the group, so that the others need not wait for the session to run out. Under a name it stays in it."""
        self._leaving, self._starts = True, {}
        if self._consumer is not None:
            # An assignment that waits for us must be answered before: in ``close`` the answer may be waited for by all
            # threads and for good (https://github.com/confluentinc/librdkafka/issues/4884).
            with contextlib.suppress(self._library.KafkaException):
                self._consumer.consume(FETCH_MAX, 0)
            consumer, self._consumer = self._consumer, None
            consumer.close()

    def _open(self) -> None:
        self._consumer = opened(self._library, lambda: self._library.Consumer(self._options))
        self._subscribe()

    def _subscribe(self) -> None:
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _return(self) -> None:
        """Into the group, unless another process has this one's name there."""
        if self._name is not None and self._name.taken():
            self._fenced = MemberFenced(self._settings.bootstrap, self._settings.member)
            raise self._fenced
        self._subscribe()
        self._outside = False

    def _fetch(self, max_messages: int, timeout_s: float) -> list[Any]:
        """``consume`` would wait for all of ``max_messages``: so take what is there, else wait for one."""
        messages: list[Any] = self._consumer.consume(max_messages, 0)
        if not messages and (first := self._consumer.poll(timeout_s)) is not None:
            messages = [first, *(self._consumer.consume(max_messages - 1, 0) if max_messages > 1 else ())]
        return messages

    def _deliveries(self, messages: Sequence[Any]) -> list[Delivery]:
        return [
            Delivery(
                message.topic(),
                message.partition(),
                message.offset(),
                decode_key(message.key()),
                message.value(),
                decode_headers(message.headers()),
            )
            for message in messages
            if message.error() is None or self._note(message)
        ]

    def _note(self, message: Any) -> bool:
        """Act on an event that came in a message's place. Never raises: the others of the batch must get out."""
        error, codes = message.error(), self._library.KafkaError
        if error.code() == codes._AUTO_OFFSET_RESET:  # noqa: SLF001 - its public name in librdkafka
            self._restart(message)
        elif error.code() in (codes.TOPIC_AUTHORIZATION_FAILED, codes.GROUP_AUTHORIZATION_FAILED):
            self._failure = BrokerError(f"Kafka at {self._settings.bootstrap} refuses: {error.str()}")
        elif error.code() == codes.INVALID_SESSION_TIMEOUT:
            self._failure = self._settings.session_refused()
        elif error.fatal() or error.code() == codes._FATAL:  # noqa: SLF001 - as above
            self._note_fatal(error)
        else:
            log.warning("broker.consumer", error=error.str())
        return False

    def _note_fatal(self, error: Any) -> None:
        """The client names a fatal error's reason by its text only: so by the text it has for that reason."""
        if self._library.KafkaError(self._library.KafkaError.FENCED_INSTANCE_ID).str() in error.str():
            self._fenced = MemberFenced(self._settings.bootstrap, self._settings.member)
        else:
            self._failure = unavailable(self._settings, error.str())

    def _restart(self, message: Any) -> None:
        log.warning(
            "broker.gap",
            topic=message.topic(),
            partition=message.partition(),
            reason="the wanted offset is gone: reading from the earliest",
            detail=message.error().str(),
        )
        self._lost.add(TopicPartition(message.topic(), message.partition()))

    def _assign_again(self) -> None:
        """librdkafka has stopped the lost partitions and refuses to seek in them: so assign all, each where it is.

        A partition that has given nothing since it was assigned has no position: it is where it was assigned.
        """
        for position in self._consumer.position([self._library.TopicPartition(*tp) for tp in self._starts]):
            if position.offset >= 0:
                self._starts[TopicPartition(position.topic, position.partition)] = position.offset
        self._starts |= dict.fromkeys(self._lost & self._starts.keys(), self._library.OFFSET_BEGINNING)
        self._lost.clear()
        self._assign()

    def _on_assign(self, consumer: Any, partitions: Sequence[Any]) -> None:
        if self._leaving:  # nothing is taken any more; and in ``close`` its member id would be waited for, for good
            consumer.assign([])
            return
        if self._name is not None:
            self._name.known_as(consumer.memberid())
        self._pending = [TopicPartition(p.topic, p.partition) for p in partitions]
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - raised by poll; an exception must not cross librdkafka
            # Without this librdkafka would assign them itself, at the committed offsets.
            consumer.assign([])
            self._failure = error

    def _begin(self) -> None:
        """Start each pending partition where it is to start."""
        asked = {partition: self._start(partition) for partition in self._pending}
        beginning = self._library.OFFSET_BEGINNING
        self._starts = {partition: beginning if at is None else at for partition, at in asked.items()}
        self._assign()
        self._pending = ()

    def _assign(self) -> None:
        self._consumer.assign([self._library.TopicPartition(*tp, at) for tp, at in self._starts.items()])

    def _on_revoke(self, _consumer: Any, _partitions: Sequence[Any]) -> None:
        self._starts, self._pending = {}, ()
        self._lost.clear()

    def _on_lost(self, consumer: Any, partitions: Sequence[Any]) -> None:
        self._on_revoke(consumer, partitions)
        if self._name is not None and self._consumer is not None:  # not in ``close``: it would wait as there
            self._outside = True
            with contextlib.suppress(self._library.KafkaException):  # already fenced: then it does not join again
                consumer.unsubscribe()  # else it would, at once

    def _on_error(self, error: Any) -> None:
        codes = self._library.KafkaError
        if error.fatal():
            self._note_fatal(error)
        elif error.code() in (codes._ALL_BROKERS_DOWN, codes._AUTHENTICATION):  # noqa: SLF001 - as above
            self._down = error.str()

    def _raise_if_failed(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._down is not None or time.monotonic() - self._heard_at > PROBE_EVERY_S:
            self._check_up()

    def _check_up(self) -> None:
        """librdkafka says when servers are down, not when they are up again nor when they do not answer: so ask."""
        try:
            self._consumer.list_topics(self._topics[0], timeout=min(PROBE_WAIT_S, self._settings.timeout_s))
        except self._library.KafkaException as error:
            raise unavailable(self._settings, self._down or error.args[0].str()) from error
        self._down, self._heard_at = None, time.monotonic()
