"""Topics of the local broker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from outbox.broker.protocol import Range, TopicPartition
from outbox.broker.topics import TopicRefused

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""Kafka's rule for topic names, so that nothing breaks when an application moves there."""

FIND: Final = "SELECT topic, topic_id, partitions FROM outbox.broker_topic WHERE topic = ANY(%s)"

MAKE: Final = """
INSERT INTO outbox.broker_topic (topic, partitions)
SELECT name, %s FROM unnest(%s::text[]) AS name ORDER BY name ON CONFLICT (topic) DO NOTHING
"""

MAKE_PARTITIONS: Final = """
INSERT INTO outbox.broker_partition (topic_id, partition)
SELECT t.topic_id, p FROM outbox.broker_topic t CROSS JOIN generate_series(0, t.partitions - 1) AS p
WHERE t.topic = ANY(%s) ORDER BY 1, 2 ON CONFLICT DO NOTHING
"""

ENDS: Final = """
SELECT t.topic, p.partition, p.next_offset FROM outbox.broker_topic t JOIN outbox.broker_partition p USING (topic_id)
WHERE t.topic = ANY(%s)
"""

RANGES: Final = """
SELECT t.topic, p.partition, t.topic_id::text,
       coalesce((SELECT b."offset" FROM outbox.broker_message b
                 WHERE b.topic_id = p.topic_id AND b.partition = p.partition ORDER BY b."offset" LIMIT 1),
                p.next_offset), p.next_offset
FROM outbox.broker_topic t JOIN outbox.broker_partition p USING (topic_id)
WHERE t.topic = ANY(%s)
"""


class Topic(NamedTuple):
    """A topic that exists."""

    id: int
    partitions: int


def find_topics(connection: psycopg.Connection[Any], topics: Sequence[str]) -> dict[str, Topic]:
    """Those of the topics that exist."""
    return {row[0]: Topic(row[1], row[2]) for row in connection.execute(FIND, [list(topics)])}


def ensure_topics(connection: psycopg.Connection[Any], topics: Sequence[str], partitions: int) -> dict[str, Topic]:
    """All of the topics, made if missing. Raises :class:`~outbox.broker.topics.TopicRefused`."""
    for topic in topics:
        if not NAME.fullmatch(topic) or topic in (".", ".."):
            raise TopicRefused(topic, "a name has 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    found = find_topics(connection, topics)
    missing = [topic for topic in topics if topic not in found]
    if missing:
        with connection.transaction():
            connection.execute(MAKE, [partitions, missing])
            connection.execute(MAKE_PARTITIONS, [missing])
        found |= find_topics(connection, missing)
    return found


def ends(connection: psycopg.Connection[Any], topics: Sequence[str]) -> Mapping[TopicPartition, int]:
    """The offset that the next message of each partition will get."""
    return {TopicPartition(row[0], row[1]): row[2] for row in connection.execute(ENDS, [list(topics)])}


def ranges(connection: psycopg.Connection[Any], topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
    """What each partition holds."""
    return {TopicPartition(t, p): Range(*rest) for t, p, *rest in connection.execute(RANGES, [list(topics)])}
