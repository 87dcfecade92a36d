"""Kafka through confluent-kafka (librdkafka): the quicker of the two clients, an optional extra."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from outbox.broker.confluent_consumer import ConfluentConsumer
from outbox.broker.confluent_producer import ConfluentProducer
from outbox.broker.confluent_transactions import ConfluentClient
from outbox.broker.librdkafka import load_library, opened, refused, unavailable
from outbox.broker.protocol import Consumer, Producer, Range, Start, TopicPartition, Transactions
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused, Topics, for_a_consumer
from outbox.broker.transactions import NOTES_CONFIG, KafkaTransactions
from outbox.errors import BrokerUnavailable

log: Final = logging.getLogger("outbox.broker.librdkafka")
"""Where librdkafka writes. It would print to standard error by itself."""

SAID: Final = ("enable.gapless.guarantee is experimental", "Static consumer fenced")
"""Parts of lines that are left out: of what was chosen, and of what is raised as an error of ours."""

log.addFilter(lambda record: not any(said in record.getMessage() for said in SAID))

RECONNECT_BACKOFF_MAX_MS: Final = 1_000
"""librdkafka's own 10 s would be felt after every restart of a server."""


EXISTS: Final = "TOPIC_ALREADY_EXISTS"
MISSING: Final = ("UNKNOWN_TOPIC_OR_PART", "TOPIC_EXCEPTION")
"""A name that cannot be is missing too: making it says why."""

SETTLE_S: Final = 5.0
SETTLE_WAIT_S: Final = 0.05
SETTLE_WAIT_MAX_S: Final = 0.5
"""A partition just made, or one whose server has just gone, is without a leader for a moment."""


class ConfluentBroker:
    """Kafka at ``settings.bootstrap``. Nothing is connected before it is used.

    Raises :class:`~outbox.errors.SettingsError` if confluent-kafka is not installed or refuses an option.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._library = load_library()
        self._admin_client: Any = None
        self._topics = Topics(self._find, self._make)
        self._notes = Topics(self._find, self._make_notes)

    def producer(self) -> Producer:
        """A producer; it connects with the first publish, and again after a failed one."""
        return ConfluentProducer(self._library, self._options(), self._settings, self._topics)

    def transactions(self, name: str) -> Transactions:
        """See :class:`outbox.broker.protocol.Broker`."""
        client = ConfluentClient(self._library, self._options(), self._settings, self._topics, name)
        return KafkaTransactions(client, self._topics, self._notes, name)

    def consumer(self, group: str, topics: Sequence[str], start: Start) -> Consumer:
        """A member of ``group``. Raises :class:`~outbox.errors.BrokerUnavailable` or, for a topic that can
        never be made, :class:`~outbox.errors.BrokerError`."""
        with for_a_consumer():
            self._topics.ensure(topics)
        return ConfluentConsumer(self._library, self._options(), self._settings, group, topics, start)

    def ends(self, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        """The end of every partition, as a reader of committed messages sees it."""
        return self._settling()(self._ends, topics)

    def ranges(self, topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
        """See the protocol."""
        return self._settling()(self._ranges, topics)

    def close(self) -> None:
        """Let go of the connection that looks after topics."""
        self._admin_client = None

    def _ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        partitions = [TopicPartition(topic, p) for topic, count in self._find(topics).items() for p in range(count)]
        return self._offsets(partitions, "latest")

    def _ranges(self, topics: Sequence[str]) -> dict[TopicPartition, Range]:
        incarnations = {
            TopicPartition(topic, p): str(described.topic_id)
            for topic, described in self._described(topics).items()
            for p in range(len(described.partitions))
        }
        # Earliest ones first, so that a range is never turned round.
        earliest = self._offsets(list(incarnations), "earliest")
        ends = self._offsets(list(incarnations), "latest")
        return {tp: Range(incarnations[tp], earliest[tp], ends[tp]) for tp in earliest.keys() & ends.keys()}

    def _offsets(
        self, partitions: Sequence[TopicPartition], which: Literal["earliest", "latest"]
    ) -> dict[TopicPartition, int]:
        if not partitions:
            return {}
        spec = getattr(import_module("confluent_kafka.admin").OffsetSpec, which)()
        request = {self._library.TopicPartition(*tp): spec for tp in partitions}
        committed = self._library.IsolationLevel.READ_COMMITTED
        futures = self._admin().list_offsets(request, isolation_level=committed, **self._bounded())
        try:
            return {TopicPartition(tp.topic, tp.partition): self._result(f).offset for tp, f in futures.items()}
        except self._library.KafkaException as error:
            raise unavailable(self._settings, error.args[0].str()) from error

    def _options(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": self._settings.bootstrap,
            "logger": log,
            "reconnect.backoff.max.ms": RECONNECT_BACKOFF_MAX_MS,
            **self._settings.security,
        }

    def _admin(self) -> Any:
        if self._admin_client is None:
            admin = import_module("confluent_kafka.admin")
            self._admin_client = opened(self._library, lambda: admin.AdminClient(self._options()))
        return self._admin_client

    def _bounded(self) -> dict[str, float]:
        return {"request_timeout": self._settings.timeout_s}

    def _find(self, topics: Sequence[str]) -> dict[str, int]:
        return {topic: len(described.partitions) for topic, described in self._described(topics).items()}

    def _described(self, topics: Sequence[str]) -> dict[str, Any]:
        if not topics:
            return {}
        futures = self._admin().describe_topics(self._library.TopicCollection(list(topics)), **self._bounded())
        found = {}
        for topic, future in futures.items():
            try:
                found[topic] = self._result(future)
            except self._library.KafkaException as error:
                if error.args[0].name() not in MISSING:
                    raise TopicRefused(topic, error.args[0].str()) from error
        return found

    def _make(self, topics: Sequence[str]) -> None:
        admin, settings = import_module("confluent_kafka.admin"), self._settings
        self._create([admin.NewTopic(topic, settings.partitions, settings.replication) for topic in topics])

    def _make_notes(self, topics: Sequence[str]) -> None:
        admin, replication = import_module("confluent_kafka.admin"), self._settings.replication
        self._create([admin.NewTopic(topic, 1, replication, config=dict(NOTES_CONFIG)) for topic in topics])

    def _create(self, new: Sequence[Any]) -> None:
        settings = self._settings
        futures = self._admin().create_topics([*new], operation_timeout=settings.timeout_s, **self._bounded())
        for topic, future in futures.items():
            try:
                self._result(future)
            except self._library.KafkaException as error:
                if error.args[0].name() != EXISTS:
                    raise TopicRefused(topic, error.args[0].str()) from error

    def _settling(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(BrokerUnavailable),
            wait=wait_exponential(SETTLE_WAIT_S, max=SETTLE_WAIT_MAX_S),
            stop=stop_after_delay(min(SETTLE_S, self._settings.timeout_s)),
            reraise=True,
        )

    def _result(self, future: Any) -> Any:
        """A future's value. What is for good comes as the library's error, all else as BrokerUnavailable."""
        try:
            return future.result(self._settings.timeout_s)
        except TimeoutError as error:
            raise unavailable(self._settings, "no answer in time") from error
        except self._library.KafkaException as error:
            if refused(error.args[0]) or error.args[0].name() in (EXISTS, *MISSING):
                raise
            raise unavailable(self._settings, error.args[0].str()) from error
