"""Does the broker hold events that the log does not have? Asked by a relay before it publishes anything.

The map of what is published is written just behind the broker, so a relay that was killed leaves some messages
beyond it, and those are in the log. If PostgreSQL was restored to an earlier moment, the map is as old as the
log, and beyond it lies what the log has lost. A map as old as that may not know every topic there is: those are
asked for when something is to be published to them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from outbox.broker.local import LocalBroker
from outbox.broker.protocol import Broker, Consumer, Delivery, TopicPartition
from outbox.broker.topics import TopicRefused
from outbox.database import Connection
from outbox.errors import BrokerUnavailable
from outbox.log.identity import LOST, accept_timeline, check_identity, event_ids, halt, unknown_event

TAIL_MESSAGES_MAX: Final = 1_000
"""Read at the end of each partition: what is lost is the newest."""

QUIET_S: Final = 1.5
"""What has not come by then since the last message is no message: transactions leave marks in the offsets."""

JOIN_S: Final = 15.0
"""A group's first message may take a rebalance, and a relay that was killed while it asked keeps its partitions for a
session."""

POLL_S: Final = 0.2


class Horizon:
    """What one leader asks its broker. Used by one thread.

    The local broker lives in the same database and knows no more than that; projectors ask their stores.
    """

    def __init__(self, connection: Connection, broker: Broker, prefix: str) -> None:
        self._connection = connection
        self._broker = broker
        self._prefix = prefix
        self._inside = isinstance(broker, LocalBroker)
        self._known: set[str] | None = None
        """Topics of which it is known that the log has what they hold."""

    def check_log(self) -> None:
        """Return if this log may be published as far as database and broker can tell.

        A server that was promoted is accepted if the broker has nothing that the log lacks. Raises
        :class:`~outbox.errors.LogWentBack` after writing it down for all, or
        :class:`~outbox.errors.BrokerUnavailable` if what the broker holds could not be read.
        """
        identity = check_identity(self._connection)
        if self._inside:
            return
        self._check({tp.topic for tp in self._published()})
        if identity.promoted:
            accept_timeline(self._connection, identity.timeline_now)

    def check_topics(self, topics: set[str]) -> None:
        """Events are about to be published to these topics; return if the log has what they hold.

        Only those that the map does not have are looked at, once each: of the others :meth:`check_log` has been
        asked, or the last note that an exactly-once relay left. Raises as that does.
        """
        if self._inside:
            return
        if self._known is None:
            self._known = {tp.topic for tp in self._published()}
        if new := topics - self._known:
            self._known |= self._check(new)

    def _check(self, topics: set[str]) -> set[str]:
        """Those that could be looked at. Of others the broker refuses to tell, and will refuse what is sent there."""
        ends, told = self._ends(topics)
        tail = self._unexplained(ends)
        if tail:
            _check_tail(self._connection, self._broker, self._prefix, tail)
        return told

    def _ends(self, topics: set[str]) -> tuple[Mapping[TopicPartition, int], set[str]]:
        while True:
            try:
                return self._broker.ends(sorted(topics)), topics
            except TopicRefused as refused:
                topics = topics - {refused.topic}

    def _unexplained(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, tuple[int, int]]:
        """First and end offset of what lies beyond the map, by partition; of a long tail, its end."""
        published, found = self._published(), {}
        for tp, end in ends.items():
            if end > published.get(tp, 0):
                found[tp] = max(published.get(tp, 0), end - TAIL_MESSAGES_MAX), end
        return found

    def _published(self) -> dict[TopicPartition, int]:
        """The map: where each partition's next message is expected."""
        rows = self._connection.execute('SELECT topic, partition, "offset" + 1 FROM outbox.published')
        return {TopicPartition(t, p): offset for t, p, offset in rows}


def _check_tail(
    connection: Connection, broker: Broker, prefix: str, tail: Mapping[TopicPartition, tuple[int, int]]
) -> None:
    topics = sorted({tp.topic for tp in tail})
    # Partitions without a tail begin at their end: nothing of them is wanted.
    starts = {**broker.ends(topics), **{tp: first for tp, (first, _) in tail.items()}}

    def start(partition: TopicPartition) -> int | None:
        return starts.get(partition)

    consumer = broker.consumer(f"{prefix}.horizon", topics, start)
    try:
        for deliveries in _read(consumer, {tp: end for tp, (_, end) in tail.items()}):
            unknown = unknown_event(connection, event_ids(deliveries))
            if unknown is not None:
                raise halt(connection, f"the broker holds event {unknown}, {LOST}")
    finally:
        consumer.close()


def _read(consumer: Consumer, left: dict[TopicPartition, int]) -> Iterator[Sequence[Delivery]]:
    """Batches, until every partition is read up to its end, or nothing more comes of those that are not.

    Raises :class:`~outbox.errors.BrokerUnavailable` if another member of the group, which may be a relay that was
    killed, has some of them: of what it was not given it can say nothing.
    """
    quiet_at = time.monotonic() + JOIN_S
    while left and time.monotonic() < quiet_at:
        deliveries = consumer.poll(TAIL_MESSAGES_MAX, POLL_S)
        yield deliveries
        wanted = False
        for delivery in deliveries:
            tp = TopicPartition(delivery.topic, delivery.partition)
            wanted = wanted or tp in left
            if delivery.offset + 1 >= left.get(tp, 0):
                left.pop(tp, None)
        soon = time.monotonic() + QUIET_S
        if left.keys() <= consumer.assignment():
            quiet_at = soon if wanted else min(quiet_at, soon)
        elif wanted:
            quiet_at = max(quiet_at, soon)
    if not left.keys() <= consumer.assignment():
        raise BrokerUnavailable(
            f"what the broker holds of {', '.join(sorted({tp.topic for tp in left}))} beyond the map of what is"
            f" published could not be read within {JOIN_S:g} s"
        )
