"""Publishing to the local broker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

import orjson
import psycopg

from outbox.broker.local_link import CHANNEL, Connection, Link
from outbox.broker.local_settings import PART_MESSAGES, LocalSettings
from outbox.broker.local_topics import Topic, ensure_topics
from outbox.broker.local_trim import trim
from outbox.broker.protocol import Outgoing, Places, TopicPartition
from outbox.broker.topics import TOPICS_KNOWN_MAX, TopicRefused, encode_key, first_refused
from outbox.errors import MessageRefused

CHUNK_MESSAGES: Final = 10_000
CHUNK_BYTES: Final = 32 * 1024 * 1024
"""One statement carries at most this; a message above it goes alone."""

TRIM_EVERY_MESSAGES: Final = PART_MESSAGES // 8

# Partitions are locked in one order by all publishers, so that none waits in a circle.
PUBLISH: Final = """
WITH wanted AS (
    SELECT * FROM unnest(%b::int[], %b::int[], %b::bigint[]) AS w (topic_id, partition, messages)
), locked AS (
    SELECT p.topic_id, p.partition, w.messages
    FROM outbox.broker_partition p JOIN wanted w USING (topic_id, partition)
    ORDER BY p.topic_id, p.partition FOR NO KEY UPDATE OF p
), moved AS (
    UPDATE outbox.broker_partition p SET next_offset = p.next_offset + l.messages
    FROM locked l WHERE p.topic_id = l.topic_id AND p.partition = l.partition
    RETURNING p.topic_id, p.partition, p.next_offset - l.messages AS base
), put AS (
    INSERT INTO outbox.broker_message (topic_id, partition, "offset", key, value, headers)
    SELECT m.topic_id, m.partition, moved.base + m.rank, m.key, m.value, m.headers
    FROM unnest(%b::int[], %b::int[], %b::bigint[], %b::bytea[], %b::bytea[], %b::bytea[])
         AS m (topic_id, partition, rank, key, value, headers)
    JOIN moved USING (topic_id, partition)
)
SELECT topic_id, partition, base, pg_notify(%s, '') FROM moved
"""


@dataclass(slots=True)
class Chunk:
    """The messages of one statement, by column; ``ranks`` counts those of one partition from 0."""

    topic_ids: list[int] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, topic: Topic, key: bytes, value: bytes | None, headers: bytes) -> None:
        place = topic.id, crc32(key) % topic.partitions
        rank = self.counts.get(place, 0)
        self.counts[place] = rank + 1
        self.topic_ids.append(place[0])
        self.partitions.append(place[1])
        self.ranks.append(rank)
        self.keys.append(key)
        self.values.append(value)
        self.headers.append(headers)

    def parameters(self) -> list[Any]:
        wanted = [topic_id for topic_id, _ in self.counts], [partition for _, partition in self.counts]
        messages = self.topic_ids, self.partitions, self.ranks, self.keys, self.values, self.headers
        return [*wanted, list(self.counts.values()), *messages, CHANNEL]

    def placed(self, bases: Mapping[tuple[int, int], int], names: Mapping[int, str]) -> Places:
        """How far the messages reach; ``bases`` are the first offsets given out in each partition."""
        return {
            TopicPartition(names[topic_id], partition): bases[topic_id, partition] + count - 1
            for (topic_id, partition), count in self.counts.items()
        }


class LocalPublishing:
    """What publishing to the local broker takes, in a transaction or not."""

    def __init__(self, link: Link, settings: LocalSettings) -> None:
        self._link = link
        self._settings = settings
        self._topics: dict[str, Topic] = {}
        self._until_trim = 0

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def _learn(self, connection: Connection, messages: Iterable[Outgoing]) -> None:
        # In the order of the messages: the first topic that is refused is that of the first message refused.
        wanted = dict.fromkeys(message.topic for message in messages)
        unknown = [topic for topic in wanted if topic not in self._topics]
        if unknown:
            if len(self._topics) > TOPICS_KNOWN_MAX:
                self._topics.clear()
                unknown = list(wanted)
            self._topics |= ensure_topics(connection, unknown, self._settings.partitions)

    def _chunks(self, messages: Sequence[Outgoing]) -> Iterator[Chunk]:
        chunk = Chunk()
        for index, message in enumerate(messages):
            key, headers = encode_key(message, index), encode_headers(message, index)
            needed = len(key) + len(headers) + len(message.value or b"")
            self._check_size(message, needed, index)
            if chunk.keys and (len(chunk.keys) == CHUNK_MESSAGES or chunk.size_bytes + needed > CHUNK_BYTES):
                yield chunk
                chunk = Chunk()
            chunk.add(self._topics[message.topic], key, message.value, headers)
            chunk.size_bytes += needed
        yield chunk

    def _check_size(self, message: Outgoing, size: int, index: int) -> None:
        limit = self._settings.max_message_bytes
        if size > limit:
            raise MessageRefused(
                f"message {index} for topic {message.topic!r} has {size} bytes, the limit is {limit}", index
            )

    def _put(self, connection: Connection, chunk: Chunk) -> dict[tuple[int, int], int]:
        """Write one chunk; the first offset given out in each partition."""
        rows = connection.execute(PUBLISH, chunk.parameters()).fetchall()
        if len(rows) != len(chunk.counts):
            self._topics.clear()
            raise psycopg.OperationalError("a topic was deleted")
        return {(topic_id, partition): base for topic_id, partition, base, _ in rows}

    def _trim(self, connection: Connection, published: int) -> None:
        self._until_trim -= published
        if self._until_trim <= 0:
            trim(connection, self._settings.keep_messages)
            self._until_trim = TRIM_EVERY_MESSAGES

    def _placed(self, chunks: Sequence[Chunk], bases: Sequence[Mapping[tuple[int, int], int]]) -> Places:
        names = {topic.id: name for name, topic in self._topics.items()}
        each = [chunk.placed(base, names) for chunk, base in zip(chunks, bases, strict=True)]
        return {partition: last for places in each for partition, last in places.items()}


class LocalProducer(LocalPublishing):
    """See :class:`outbox.broker.protocol.Producer`."""

    def publish(self, messages: Sequence[Outgoing]) -> Places:
        """See the protocol. One transaction; up to 10,000 messages and 32 MiB are one round trip."""
        if not messages:
            return {}
        try:
            return self._publish(messages)
        except TopicRefused as error:
            refusal = first_refused(messages, error)
        except MessageRefused as error:
            refusal = error
        self.publish(messages[: refusal.index])
        raise refusal

    def _publish(self, messages: Sequence[Outgoing]) -> Places:
        with self._link.use() as connection:
            self._learn(connection, messages)
            chunks = list(self._chunks(messages))
            with connection.transaction() if len(chunks) > 1 else contextlib.nullcontext():
                bases = [self._put(connection, chunk) for chunk in chunks]
            self._trim(connection, len(messages))
        return self._placed(chunks, bases)


def encode_headers(message: Outgoing, index: int) -> bytes:
    """A JSON object; each byte of a value is one character."""
    headers = message.headers
    if not headers:
        return b"{}"
    try:
        return orjson.dumps({name: value.decode("latin-1") for name, value in headers})
    except TypeError as error:
        raise MessageRefused(f"message {index} has a header whose name is not valid text", index) from error


def decode_headers(headers: bytes) -> dict[str, bytes]:
    """What :func:`encode_headers` wrote."""
    return {name: value.encode("latin-1") for name, value in orjson.loads(headers).items()}
