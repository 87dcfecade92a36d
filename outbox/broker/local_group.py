"""Sharing the partitions of topics among the members of a group.

All steps are taken under one advisory lock a group, so members never see each other half-way:

1. The member upserts its row, and removes members whose heartbeat is older than the lease.
2. Leases of members that are gone become free.
3. From the rows left every member works out the same shares: of each topic, partition ``p`` belongs to the
   ``p mod n``-th of the ``n`` members that want the topic.
4. It frees the leases it holds beyond its share (the others are told) and takes those of its share that are free;
   taking one raises its epoch. What another still holds is taken once that one has freed it.

A crash between any two steps undoes them all: they are one transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from outbox.broker.local_link import CHANNEL, Connection
from outbox.broker.protocol import TopicPartition
from outbox.errors import BrokerError

GROUP_LENGTH_MAX: Final = 255

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('outbox.broker:' || %s, 0))"
JOIN: Final = """
INSERT INTO outbox.broker_member AS m (grp, member, topics) VALUES (%s, %s, %s)
ON CONFLICT (grp, member) DO UPDATE SET beat_at = clock_timestamp() RETURNING xmax = 0
"""
EXPIRE: Final = """
DELETE FROM outbox.broker_member WHERE grp = %s AND beat_at < clock_timestamp() - make_interval(secs => %s)
"""
FREE_THE_DEAD: Final = """
UPDATE outbox.broker_lease l SET member = NULL
WHERE grp = %s AND member IS NOT NULL
  AND NOT EXISTS (SELECT FROM outbox.broker_member m WHERE m.grp = l.grp AND m.member = l.member)
"""
MEMBERS: Final = "SELECT member, topics FROM outbox.broker_member WHERE grp = %s ORDER BY member"
LEASES: Final = """
SELECT t.topic, p.partition, l.member, l.epoch
FROM outbox.broker_topic t JOIN outbox.broker_partition p USING (topic_id)
LEFT JOIN outbox.broker_lease l ON l.topic_id = p.topic_id AND l.partition = p.partition AND l.grp = %s
WHERE t.topic = ANY(%s)
"""
FREE: Final = """
UPDATE outbox.broker_lease l SET member = NULL
FROM unnest(%s::text[], %s::int[]) AS f (topic, partition) JOIN outbox.broker_topic t USING (topic)
WHERE l.grp = %s AND l.member = %s AND l.topic_id = t.topic_id AND l.partition = f.partition
"""
TAKE: Final = """
INSERT INTO outbox.broker_lease AS l (grp, topic_id, partition, member)
SELECT %s, t.topic_id, f.partition, %s
FROM unnest(%s::text[], %s::int[]) AS f (topic, partition) JOIN outbox.broker_topic t USING (topic)
ON CONFLICT (grp, topic_id, partition) DO UPDATE SET member = excluded.member, epoch = l.epoch + 1
WHERE l.member IS NULL
"""
LEAVE: Final = "DELETE FROM outbox.broker_member WHERE grp = %s AND member = %s"
TELL: Final = "SELECT pg_notify(%s, %s)"

Shares = Mapping[TopicPartition, int]
"""Partitions held, with the epoch of each lease."""


class Membership:
    """One member of one group."""

    def __init__(self, group: str, topics: Sequence[str], lease_s: float) -> None:
        if not 0 < len(group) <= GROUP_LENGTH_MAX or "\x00" in group:
            raise BrokerError(f"group {group!r}: a name has 1 to {GROUP_LENGTH_MAX} characters")
        self.group = group
        self.member = uuid.uuid4()
        self._topics = list(topics)
        self._lease_s = lease_s

    def share(self, connection: Connection) -> Shares:
        """Take part in the sharing (see the module); the leases held afterwards."""
        with connection.transaction():
            connection.execute(LOCK, [self.group])
            came = connection.execute(JOIN, [self.group, self.member, self._topics]).fetchone()
            went = connection.execute(EXPIRE, [self.group, self._lease_s]).rowcount
            connection.execute(FREE_THE_DEAD, [self.group])
            leases = self._leases(connection)
            mine = self._mine(connection, leases)
            freed = self._free(connection, [tp for tp, (holder, _) in leases.items() if holder and tp not in mine])
            self._take(connection, [tp for tp in mine if leases[tp][0] is None])
            if freed or went or (came and came[0]):
                connection.execute(TELL, [CHANNEL, self.group])
            held = self._leases(connection) if freed or self._wanting(mine, leases) else leases
        return {tp: epoch for tp, (holder, epoch) in held.items() if holder == self.member}

    def leave(self, connection: Connection) -> None:
        """Free everything at once, so that the others need not wait for the lease to run out."""
        with connection.transaction():
            connection.execute(LOCK, [self.group])
            connection.execute(LEAVE, [self.group, self.member])
            connection.execute(FREE_THE_DEAD, [self.group])
            connection.execute(TELL, [CHANNEL, self.group])

    def _leases(self, connection: Connection) -> dict[TopicPartition, tuple[uuid.UUID | None, int]]:
        rows = connection.execute(LEASES, [self.group, self._topics])
        return {TopicPartition(topic, partition): (holder, epoch) for topic, partition, holder, epoch in rows}

    def _mine(self, connection: Connection, partitions: Iterable[TopicPartition]) -> set[TopicPartition]:
        members = connection.execute(MEMBERS, [self.group]).fetchall()
        wanting = {topic: [m for m, topics in members if topic in topics] for topic in self._topics}
        return {tp for tp in partitions if wanting[tp.topic][tp.partition % len(wanting[tp.topic])] == self.member}

    def _free(self, connection: Connection, beyond: Sequence[TopicPartition]) -> int:
        if not beyond:
            return 0
        topics, partitions = [tp.topic for tp in beyond], [tp.partition for tp in beyond]
        return connection.execute(FREE, [topics, partitions, self.group, self.member]).rowcount

    def _take(self, connection: Connection, free: Sequence[TopicPartition]) -> None:
        if free:
            topics, partitions = [tp.topic for tp in free], [tp.partition for tp in free]
            connection.execute(TAKE, [self.group, self.member, topics, partitions])

    def _wanting(
        self, mine: Iterable[TopicPartition], leases: Mapping[TopicPartition, tuple[uuid.UUID | None, int]]
    ) -> bool:
        return any(leases[tp][0] is None for tp in mine)
