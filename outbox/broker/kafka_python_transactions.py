"""Kafka's transactions over kafka-python.

Two things the client (3.0) does for its users would break the promise here, so its transaction manager is used
directly. It waits without a bound for a transaction's end. And when the servers tell it in answer to a message that
another publisher has taken over, it takes the id back by itself and goes on, with the transaction that was under way
silently undone. So its epoch is compared before and after everything: once it has changed, this publisher is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, errors
from kafka import TopicPartition as KafkaTopicPartition
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from outbox.broker.kafka_python_errors import opened, translated, unavailable
from outbox.broker.kafka_python_producer import KafkaPythonProducer
from outbox.broker.protocol import Outgoing, Places
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import Topics
from outbox.broker.transactions import tails, taken_over, transaction_timeout_ms
from outbox.errors import BrokerUnavailable

FENCED: Final = (errors.ProducerFencedError, errors.InvalidProducerEpochError)
POLL_MS: Final = 100


class KafkaPythonClient(KafkaPythonProducer):
    """See :class:`outbox.broker.transactions.Client`."""

    def __init__(self, settings: KafkaSettings, topics: Topics, name: str) -> None:
        super().__init__(settings, topics)
        self._name = name
        self._epoch: Any = None

    def fence(self) -> None:
        """See the protocol."""
        with translated(self._settings):
            self._producer = self._new(
                transactional_id=self._name, transaction_timeout_ms=transaction_timeout_ms(self._settings)
            )
            self._producer.init_transactions()
        self._epoch = self._manager.producer_id_and_epoch

    def begin(self) -> None:
        """See the protocol."""
        self._open()
        with translated(self._settings):
            self._check()
            self._manager.begin_transaction()

    def attempt(self, messages: Sequence[Outgoing]) -> Places:
        """See the protocol."""
        try:
            placed = super().attempt(messages)
        except BrokerUnavailable:
            self._check()
            raise
        self._check()
        return placed

    def commit(self) -> None:
        """See the protocol."""
        self._end(self._manager.begin_commit)

    def abort(self) -> None:
        """See the protocol."""
        self._end(self._manager.begin_abort)

    def last_note(self) -> bytes | None:
        """See the protocol. Waits until all that was written is seen to be committed or undone."""
        until = time.monotonic() + self._settings.timeout_s
        place = KafkaTopicPartition(self._name, 0)
        with translated(self._settings):
            end = self._written(place)
            consumer = opened(
                KafkaConsumer,
                self._settings,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                metrics_enabled=False,
            )
            try:
                consumer.assign([place])
                for start in tails(consumer.beginning_offsets([place])[place], end):
                    notes = list(self._read(consumer, place, start, end, until))
                    if notes:
                        return notes[-1]
            finally:
                consumer.close(autocommit=False)
        return None

    @property
    def _manager(self) -> Any:
        return self._producer._transaction_manager  # noqa: SLF001 - see above

    def _end(self, begin: Any) -> None:
        with translated(self._settings):
            self._check()
            try:
                result = begin()
                self._producer._sender.wakeup()  # noqa: SLF001 - as the client's own methods do
                ended = result.wait(timeout_ms=self._settings.timeout_ms)
            except FENCED as error:
                raise taken_over(self._name) from error
            if not ended:
                raise unavailable(self._settings, f"a transaction did not end within {self._settings.timeout_s:g} s")
            self._check()

    def _check(self) -> None:
        """Raise Fenced if the servers have said so, or the client has helped itself to another epoch."""
        manager = self._manager
        if isinstance(manager.last_error, FENCED) or manager.producer_id_and_epoch != self._epoch:
            raise taken_over(self._name)

    def _written(self, place: Any) -> int:
        """The offset behind everything, committed or not."""
        admin = opened(KafkaAdminClient, self._settings)
        try:
            found = admin.list_partition_offsets({place: OffsetSpec.LATEST}, IsolationLevel.READ_UNCOMMITTED)
            return int(found[place].offset)
        finally:
            admin.close()

    def _read(self, consumer: Any, place: Any, start: int, end: int, until: float) -> Iterator[bytes]:
        """The notes from ``start`` to ``end``."""
        consumer.seek(place, start)
        while consumer.position(place) < end:
            if time.monotonic() > until:
                raise unavailable(self._settings, f"an open transaction holds up topic {self._name!r}")
            for record in consumer.poll(timeout_ms=POLL_MS).get(place, ()):
                if record.key == self._name.encode() and record.value:
                    yield record.value

    def _open(self) -> None:
        if self._producer is None:
            raise unavailable(self._settings, f"the publisher of {self._name!r} has ended")
