"""Kafka through kafka-python: pure Python, always installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, errors
from kafka import TopicPartition as KafkaTopicPartition
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from outbox.broker.kafka_python_consumer import KafkaPythonConsumer
from outbox.broker.kafka_python_errors import opened, translated
from outbox.broker.kafka_python_producer import KafkaPythonProducer
from outbox.broker.kafka_python_transactions import KafkaPythonClient
from outbox.broker.protocol import Consumer, Producer, Range, Start, TopicPartition, Transactions
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused, Topics, for_a_consumer
from outbox.broker.transactions import NOTES_CONFIG, KafkaTransactions
from outbox.errors import OutboxError


class KafkaPythonBroker:
    """Kafka at ``settings.bootstrap``. Nothing is connected before it is used."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin_client: Any = None
        self._topics = Topics(self._find, self._make)
        self._notes = Topics(self._find, self._make_notes)

    def producer(self) -> Producer:
        """A producer; it connects with the first publish, and again after a failed one."""
        return KafkaPythonProducer(self._settings, self._topics)

    def transactions(self, name: str) -> Transactions:
        """See :class:`outbox.broker.protocol.Broker`."""
        client = KafkaPythonClient(self._settings, self._topics, name)
        return KafkaTransactions(client, self._topics, self._notes, name)

    def consumer(self, group: str, topics: Sequence[str], start: Start) -> Consumer:
        """A member of ``group``. Raises :class:`~outbox.errors.BrokerUnavailable` or, for a topic that can
        never be made, :class:`~outbox.errors.BrokerError`."""
        with for_a_consumer():
            self._topics.ensure(topics)
        return KafkaPythonConsumer(self._settings, group, topics, start)

    def ends(self, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        """The end of every partition, as a reader of committed messages sees it."""
        partitions = [TopicPartition(t, p) for t, count in self._find(topics).items() for p in range(count)]
        return self._offsets(partitions, OffsetSpec.LATEST)

    def ranges(self, topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
        """See the protocol. Earliest offsets are asked for first, so that a range is never turned round."""
        incarnations = {
            TopicPartition(topic, p): str(described["topic_id"])
            for topic, described in self._described(topics).items()
            for p in range(len(described["partitions"]))
        }
        earliest = self._offsets(list(incarnations), OffsetSpec.EARLIEST)
        ends = self._offsets(list(incarnations), OffsetSpec.LATEST)
        return {tp: Range(incarnations[tp], earliest[tp], ends[tp]) for tp in earliest.keys() & ends.keys()}

    def close(self) -> None:
        """Close the connection that looks after topics."""
        admin, self._admin_client = self._admin_client, None
        if admin is not None:
            admin.close()

    def _find(self, topics: Sequence[str]) -> dict[str, int]:
        return {topic: len(described["partitions"]) for topic, described in self._described(topics).items()}

    def _described(self, topics: Sequence[str]) -> dict[str, Any]:
        if not topics:
            return {}
        described = self._asked(lambda admin: admin.describe_topics(list(topics)))
        return {topic["name"]: topic for topic in described if not topic["error_code"]}

    def _offsets(self, partitions: Sequence[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        wanted = {KafkaTopicPartition(*tp): spec for tp in partitions}
        found = self._asked(lambda admin: admin.list_partition_offsets(wanted, IsolationLevel.READ_COMMITTED))
        return {TopicPartition(tp.topic, tp.partition): at.offset for tp, at in found.items()}

    def _make(self, topics: Sequence[str]) -> None:
        settings = self._settings
        options = {"num_partitions": settings.partitions, "replication_factor": settings.replication}
        self._create(dict.fromkeys(topics, options))

    def _make_notes(self, topics: Sequence[str]) -> None:
        options = {"num_partitions": 1, "replication_factor": self._settings.replication, "configs": NOTES_CONFIG}
        self._create(dict.fromkeys(topics, options))

    def _create(self, new: Mapping[str, Mapping[str, Any]]) -> None:
        made = self._asked(lambda admin: admin.create_topics(new, raise_errors=False))
        order = {name: number for number, name in enumerate(new)}
        # The first topic that is refused is that of the first message refused.
        for topic in sorted(made["topics"], key=lambda one: order.get(one["name"], 0)):
            error = errors.for_code(topic["error_code"])
            if error not in (errors.NoError, errors.TopicAlreadyExistsError):
                raise TopicRefused(topic["name"], topic["error_message"] or error.__name__)
        self._asked(lambda admin: admin.wait_for_topics(list(new), self._settings.timeout_ms))

    def _asked(self, question: Any) -> Any:
        """Ask the servers; after a failure the next question is asked over a new connection."""
        try:
            with translated(self._settings):
                if self._admin_client is None:
                    self._admin_client = opened(KafkaAdminClient, self._settings)
                return question(self._admin_client)
        except OutboxError:
            self.close()
            raise
