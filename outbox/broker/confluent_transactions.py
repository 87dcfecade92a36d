"""Kafka's transactions over librdkafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final

from outbox.broker.confluent_producer import ConfluentProducer, root
from outbox.broker.librdkafka import answer, opened, unavailable
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import Topics
from outbox.broker.transactions import tails, taken_over, transaction_timeout_ms
from outbox.errors import Fenced

FENCED: Final = ("_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH")
POLL_S: Final = 0.1


class ConfluentClient(ConfluentProducer):
    """See :class:`outbox.broker.transactions.Client`."""

    def __init__(
        self, library: Any, options: dict[str, Any], settings: KafkaSettings, topics: Topics, name: str
    ) -> None:
        super().__init__(library, options, settings, topics)
        self._plain = options
        self._name = name
        timeout_ms = transaction_timeout_ms(settings)
        self._options |= {
            "transactional.id": name,
            "transaction.timeout.ms": timeout_ms,
            "message.timeout.ms": timeout_ms,
            # A gap ends the producer, where giving up the transaction is enough.
            "enable.gapless.guarantee": False,
        }

    def fence(self) -> None:
        """See the protocol."""
        self._producer = opened(self._library, lambda: self._library.Producer(self._options))
        self._bounded(self._producer.init_transactions)

    def begin(self) -> None:
        """See the protocol."""
        self._open()
        self._bounded(lambda _: self._producer.begin_transaction())

    def commit(self) -> None:
        """See the protocol."""
        self._bounded(self._producer.commit_transaction)

    def abort(self) -> None:
        """See the protocol."""
        self._bounded(self._producer.abort_transaction)

    def last_note(self) -> bytes | None:
        """See the protocol. Waits until all that was written is seen to be committed or undone."""
        until = time.monotonic() + self._settings.timeout_s
        consumer = self._consumer()
        try:
            low, end = self._ends(consumer)
            for start in tails(low, end):
                notes = list(self._read(consumer, start, end, until))
                if notes:
                    return notes[-1]
            return None
        except self._library.KafkaException as error:
            raise unavailable(self._settings, error.args[0].str()) from error
        finally:
            consumer.close()

    def _consumer(self) -> Any:
        options = self._plain | {
            "group.id": self._name,  # asked for, and not used
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
        return opened(self._library, lambda: self._library.Consumer(options))

    def _ends(self, consumer: Any) -> tuple[int, int]:
        """The first offset, and the one behind everything, committed or not."""
        place = self._library.TopicPartition(self._name, 0)
        low, _ = consumer.get_watermark_offsets(place, timeout=self._settings.timeout_s)
        admin = import_module("confluent_kafka.admin")
        client = opened(self._library, lambda: admin.AdminClient(self._plain))
        timeout_s = self._settings.timeout_s
        asking = partial(client.list_offsets, {place: admin.OffsetSpec.latest()}, request_timeout=timeout_s)
        try:
            return low, answer(asking, timeout_s).offset
        except TimeoutError as error:
            raise unavailable(self._settings, "no answer in time") from error

    def _read(self, consumer: Any, start: int, end: int, until: float) -> Iterator[bytes]:
        """The notes from ``start`` to ``end``. An end of the partition before ``end`` is an open transaction's."""
        consumer.assign([self._library.TopicPartition(self._name, 0, start)])
        reached = start
        while reached < end:
            if time.monotonic() > until:
                raise unavailable(self._settings, f"an open transaction holds up topic {self._name!r}")
            message = consumer.poll(POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is None:
                reached = message.offset() + 1
                if message.key() == self._name.encode() and message.value():
                    yield message.value()
            elif error.code() == self._library.KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                reached = message.offset()
            else:
                raise unavailable(self._settings, error.str())

    def _open(self) -> None:
        if self._producer is None:
            raise unavailable(self._settings, f"the publisher of {self._name!r} has ended")

    def _bounded(self, call: Callable[[float], None]) -> None:
        """Call until it is done. Raises Fenced, or BrokerUnavailable if it fails or takes too long."""
        until = time.monotonic() + self._settings.timeout_s
        while True:
            try:
                return call(max(0.1, until - time.monotonic()))
            except self._library.KafkaException as error:
                reason = error.args[0]
                if not reason.retriable() or time.monotonic() > until:
                    raise self._ended(reason) from error

    def _ended(self, reason: Any) -> Exception:
        return self._fenced([reason]) or unavailable(self._settings, reason.str())

    def _fatal(self, error: BaseException) -> Exception:
        return self._fenced(root(error).args) or super()._fatal(error)

    def _failure(self, failed: Sequence[Any]) -> Exception:
        return self._fenced(failed) or super()._failure(failed)

    def _fenced(self, errors: Sequence[Any]) -> Fenced | None:
        known = any(isinstance(error, self._library.KafkaError) and error.name() in FENCED for error in errors)
        return taken_over(self._name) if known else None
