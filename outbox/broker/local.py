"""The local broker: topics in PostgreSQL, for the embedded mode. No server, no thread until one consumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outbox.broker.local_consumer import LocalConsumer, listening
from outbox.broker.local_group import Membership
from outbox.broker.local_link import Link
from outbox.broker.local_producer import LocalProducer
from outbox.broker.local_pulse import Pulse
from outbox.broker.local_settings import LocalSettings
from outbox.broker.local_topics import ends, ensure_topics, ranges
from outbox.broker.local_transactions import LocalTransactions, impatient
from outbox.broker.local_trim import trim
from outbox.broker.protocol import Consumer, Producer, Range, Start, TopicPartition, Transactions
from outbox.broker.topics import for_a_consumer


class LocalBroker:
    """Topics in the database at ``dsn``, whose tables ``outbox migrate`` makes. Nothing is connected before it is used.

    Several processes may publish and consume at once.
    """

    def __init__(self, dsn: str, settings: LocalSettings | None = None) -> None:
        self._dsn = dsn
        self._settings = settings or LocalSettings()
        self._link = self._new_link()
        self._pulse = Pulse(self._new_link(), self._settings)

    def producer(self) -> Producer:
        """A producer with a connection of its own, opened by the first publish."""
        return LocalProducer(self._new_link(), self._settings)

    def transactions(self, name: str) -> Transactions:
        """See :class:`outbox.broker.protocol.Broker`."""
        return LocalTransactions(Link(self._dsn, self._settings, impatient), self._settings, name)

    def consumer(self, group: str, topics: Sequence[str], start: Start) -> Consumer:
        """A member of ``group``; it joins with its first poll.

        Raises :class:`~outbox.errors.BrokerUnavailable` or, for a topic that can never be made,
        :class:`~outbox.errors.BrokerError`.
        """
        wanted = list(dict.fromkeys(topics))
        membership = Membership(group, wanted, self._settings.lease_s)
        with for_a_consumer(), self._link.use() as connection:
            ensure_topics(connection, wanted, self._settings.partitions)
        link = Link(self._dsn, self._settings, listening)
        return LocalConsumer(link, self._pulse, self._settings, membership, start)

    def ends(self, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        """The offset the next message of each partition will get."""
        with self._link.use() as connection:
            return ends(connection, topics)

    def ranges(self, topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
        """See the protocol."""
        with self._link.use() as connection:
            return ranges(connection, topics)

    def trim(self, keep_messages: int) -> int:
        """Empty table partitions whose messages are all older than the newest ``keep_messages``; how many.

        Producers do this by themselves with ``settings.keep_messages``.
        """
        with self._link.use() as connection:
            return trim(connection, keep_messages)

    def close(self) -> None:
        """Close the connection that looks after topics, and end the heartbeat."""
        self._pulse.close()
        self._link.close()

    def _new_link(self) -> Link:
        return Link(self._dsn, self._settings)
