"""A member of a consumer group of the local broker."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outbox.broker.local_group import Membership
from outbox.broker.local_link import CHANNEL, Connection, Link
from outbox.broker.local_producer import decode_headers
from outbox.broker.local_pulse import BEATS_PER_LEASE, Pulse
from outbox.broker.local_settings import LocalSettings
from outbox.broker.protocol import Delivery, Start, TopicPartition
from outbox.broker.topics import decode_key
from outbox.errors import BrokerError
from outbox.logs import logger

log: Final = logger("outbox.broker")

LOOK_EVERY_S: Final = 1.0
"""A notification can be missed (a pooler between us and the server drops them): so look this often anyway."""

LISTEN: Final = f"LISTEN {CHANNEL}"

# The leases are asked for again with every read: a member that slept through its lease reads nothing.
BEHIND: Final = """
SELECT w.ord, p.next_offset
FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[])
     WITH ORDINALITY AS w (topic, partition, epoch, at, ord)
JOIN outbox.broker_topic t USING (topic)
JOIN outbox.broker_partition p ON p.topic_id = t.topic_id AND p.partition = w.partition
JOIN outbox.broker_lease l ON l.grp = %s AND l.topic_id = t.topic_id AND l.partition = w.partition
                          AND l.member = %s AND l.epoch = w.epoch
WHERE p.next_offset > w.at ORDER BY w.ord
"""
# ORDER BY and LIMIT inside keep the planner from joining first and filtering by offset afterwards.
READ: Final = """
SELECT w.ord, m."offset", m.key, m.value, m.headers
FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[])
     WITH ORDINALITY AS w (topic, partition, epoch, at, before, ord)
JOIN outbox.broker_topic t USING (topic)
JOIN outbox.broker_lease l ON l.grp = %s AND l.topic_id = t.topic_id AND l.partition = w.partition
                          AND l.member = %s AND l.epoch = w.epoch
CROSS JOIN LATERAL (
    SELECT "offset", key, value, headers FROM outbox.broker_message b
    WHERE b.topic_id = t.topic_id AND b.partition = w.partition AND b."offset" >= w.at AND b."offset" < w.before
    ORDER BY b."offset" LIMIT w.before - w.at
) AS m
ORDER BY w.ord, m."offset"
"""
# Of what is left from an offset on. What was trimmed need not be the beginning: a part in use is left for another time,
# and later ones are emptied.
RANGE: Final = """
SELECT coalesce((SELECT b."offset" FROM outbox.broker_message b
                 WHERE b.topic_id = p.topic_id AND b.partition = p.partition AND b."offset" >= %s
                 ORDER BY b."offset" LIMIT 1), p.next_offset), p.next_offset
FROM outbox.broker_topic t JOIN outbox.broker_partition p USING (topic_id)
WHERE t.topic = %s AND p.partition = %s
"""
COMMIT: Final = """
UPDATE outbox.broker_lease l SET committed = c.at
FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS c (topic, partition, at)
JOIN outbox.broker_topic t USING (topic)
WHERE l.grp = %s AND l.member = %s AND l.topic_id = t.topic_id AND l.partition = c.partition
"""


@dataclass(slots=True)
class Place:
    """Where this member is in a partition it holds."""

    epoch: int
    at: int


class LocalConsumer:
    """See :class:`outbox.broker.protocol.Consumer`."""

    def __init__(self, link: Link, pulse: Pulse, settings: LocalSettings, membership: Membership, start: Start) -> None:
        self._link = link
        self._pulse = pulse
        self._settings = settings
        self._membership = membership
        self._start = start
        self._places: dict[TopicPartition, Place] = {}
        self._share_at = 0.0
        self._turn = 0

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """See the protocol. Waits for a notification, and looks by itself every second."""
        until = time.monotonic() + timeout_s
        self._pulse.polled(self._membership.member)
        while True:
            with self._link.use() as connection:
                self._share(connection)
                deliveries = self._read(connection, max_messages)
                left = until - time.monotonic()
                if deliveries or left <= 0:
                    return deliveries
                self._wait(connection, min(left, LOOK_EVERY_S))

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Noted beside the lease, for people to see."""
        parameters = [
            [tp.topic for tp in offsets],
            [tp.partition for tp in offsets],
            list(offsets.values()),
            self._membership.group,
            self._membership.member,
        ]
        if offsets:
            with contextlib.suppress(BrokerError), self._link.use() as connection:
                connection.execute(COMMIT, parameters)

    def assignment(self) -> frozenset[TopicPartition]:
        """As of the last poll."""
        return frozenset(self._places)

    def close(self) -> None:
        """Leave the group."""
        self._places.clear()
        self._pulse.left(self._membership.member)
        with contextlib.suppress(BrokerError), self._link.use() as connection:
            self._membership.leave(connection)
        self._link.close()

    def _share(self, connection: Connection) -> None:
        """Take part in the sharing when it is time to, and start what is new where it is to start."""
        if time.monotonic() < self._share_at:
            return
        self._wait(connection, 0.0)  # notifications pile up while there is always something to read
        held = self._membership.share(connection)
        self._places = {tp: place for tp, place in self._places.items() if held.get(tp) == place.epoch}
        for tp in sorted(held.keys() - self._places.keys()):
            self._places[tp] = Place(held[tp], self._begin(connection, tp, self._start(tp)))
        self._share_at = time.monotonic() + self._settings.lease_s / BEATS_PER_LEASE

    def _begin(self, connection: Connection, tp: TopicPartition, wanted: int | None) -> int:
        row = connection.execute(RANGE, [0, *tp]).fetchone()
        earliest, end = row or (0, 0)
        if wanted is None or earliest <= wanted <= end:
            return earliest if wanted is None else wanted
        self._log_gap(tp, wanted, earliest)
        return int(earliest)

    def _log_gap(self, tp: TopicPartition, wanted: int, found: int) -> None:
        log.warning(
            "broker.gap",
            topic=tp.topic,
            partition=tp.partition,
            reason="the wanted offset is gone: reading from the next that is left",
            detail=f"offset {wanted}, found {found}",
        )

    def _read(self, connection: Connection, max_messages: int) -> list[Delivery]:
        behind = self._behind(connection)
        if not behind:
            return []
        ranges = self._ranges(behind, max_messages)
        silent = {tp for tp, at, before in zip(behind, *ranges[3:5], strict=True) if at < before}
        rows = connection.execute(READ, ranges, binary=True).fetchall()
        places = list(behind)
        deliveries = []
        for number, offset, key, value, headers in rows:
            tp = places[number - 1]
            self._advance(tp, offset)
            silent.discard(tp)
            deliveries.append(Delivery(tp.topic, tp.partition, offset, decode_key(key), value, decode_headers(headers)))
        if silent:
            self._skip_trimmed(connection, silent)
        return deliveries

    def _behind(self, connection: Connection) -> dict[TopicPartition, int]:
        """Partitions with messages not yet read, and their ends; a different one comes first each time."""
        order = sorted(self._places)
        self._turn += 1
        turn = self._turn % (len(order) or 1)
        order = order[turn:] + order[:turn]
        rows = connection.execute(BEHIND, [*self._columns(order), *self._identity()]) if order else ()
        return {order[number - 1]: end for number, end in rows}

    def _ranges(self, behind: Mapping[TopicPartition, int], max_messages: int) -> list[Any]:
        """Offsets have no gaps, so the range of each says how many messages will come: a fair part of the rest."""
        before, left = [], max_messages
        for number, (tp, end) in enumerate(behind.items()):
            take = min(end - self._places[tp].at, math.ceil(left / (len(behind) - number)))
            before.append(self._places[tp].at + take)
            left -= take
        return [*self._columns(list(behind)), before, *self._identity()]

    def _columns(self, partitions: Sequence[TopicPartition]) -> list[list[Any]]:
        places = [self._places[tp] for tp in partitions]
        return [
            [tp.topic for tp in partitions],
            [tp.partition for tp in partitions],
            [place.epoch for place in places],
            [place.at for place in places],
        ]

    def _identity(self) -> tuple[str, Any]:
        return self._membership.group, self._membership.member

    def _advance(self, tp: TopicPartition, offset: int) -> None:
        place = self._places[tp]
        if offset != place.at:
            self._log_gap(tp, place.at, offset)
        place.at = offset + 1

    def _skip_trimmed(self, connection: Connection, silent: Iterable[TopicPartition]) -> None:
        """There was something to read and nothing came: it has been trimmed, or the lease is lost."""
        for tp in silent:
            place = self._places[tp]
            row = connection.execute(RANGE, [place.at, *tp]).fetchone()
            if row is not None and row[0] > place.at:
                self._log_gap(tp, place.at, row[0])
                place.at = row[0]
        self._share_at = 0.0

    def _wait(self, connection: Connection, timeout_s: float) -> None:
        for notice in connection.notifies(timeout=timeout_s, stop_after=1):
            if notice.payload == self._membership.group:
                self._share_at = 0.0


def listening(connection: Connection) -> None:
    """What a consumer's connection is prepared with."""
    connection.execute(LISTEN)
