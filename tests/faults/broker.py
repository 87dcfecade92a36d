"""Reading everything that is on a run's topic, without the product's clients."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import confluent_kafka
import psycopg

from tests.faults.checks import Published
from tests.faults.until import TooLong

READ_WITHIN_S = 20.0
READ_ALL_WITHIN_S = 60.0
COPIES = 40

_LOCAL = """
SELECT m.partition, convert_from(m.key, 'UTF8'), convert_from(m.headers, 'UTF8')::json ->> 'version',
       convert_from(m.headers, 'UTF8')::json ->> 'id'
FROM outbox.broker_message m JOIN outbox.broker_topic t USING (topic_id) WHERE t.topic = %s
ORDER BY m.partition, m."offset"
"""


@dataclass(frozen=True)
class Topic:
    """Where a topic is: ``local`` (in PostgreSQL) or ``kafka``."""

    broker: str
    address: str
    name: str


def read(topic: Topic) -> list[list[Published]]:
    """Every message, by partition, in the order of offsets."""
    return _local(topic) if topic.broker == "local" else _kafka(topic)


def _local(topic: Topic) -> list[list[Published]]:
    partitions: dict[int, list[Published]] = {}
    with psycopg.connect(topic.address, autocommit=True) as connection:
        for number, key, version, id_ in connection.execute(_LOCAL, [topic.name]):
            partitions.setdefault(number, []).append(Published(key, int(version), id_))
    return list(partitions.values())


def ends(topic: Topic) -> dict[int, int]:
    """The offset behind the last message of each partition that holds any."""
    if topic.broker == "kafka":
        return {found[-1].partition(): found[-1].offset() + 1 for found in _raw(topic) if found}
    query = """SELECT m.partition, max(m."offset") + 1 FROM outbox.broker_message m JOIN outbox.broker_topic t
               USING (topic_id) WHERE t.topic = %s GROUP BY 1"""
    with psycopg.connect(topic.address, autocommit=True) as connection:
        return dict(connection.execute(query, [topic.name]).fetchall())


def _kafka(topic: Topic) -> list[list[Published]]:
    return [[_published(message) for message in partition] for partition in _raw(topic)]


def _published(message: confluent_kafka.Message) -> Published:
    headers = dict(message.headers() or [])
    return Published(message.key().decode(), int(headers["version"]), headers["id"].decode())


def _raw(topic: Topic) -> list[list[confluent_kafka.Message]]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": topic.address,
            "group.id": f"faults.{topic.name}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        numbers = consumer.list_topics(topic.name, timeout=READ_WITHIN_S).topics[topic.name].partitions
        return [list(_partition(consumer, topic.name, number)) for number in numbers]
    finally:
        consumer.close()


def _partition(consumer: confluent_kafka.Consumer, topic: str, number: int) -> Iterator[confluent_kafka.Message]:
    """Up to where the partition ends now, which for a reader of committed messages is where an open transaction
    begins; what writers that go on put behind it is not waited for."""
    place = confluent_kafka.TopicPartition(topic, number, confluent_kafka.OFFSET_BEGINNING)
    consumer.assign([place])
    _, end = consumer.get_watermark_offsets(place, timeout=READ_WITHIN_S)
    deadline = time.monotonic() + READ_ALL_WITHIN_S
    while True:
        message = consumer.poll(READ_WITHIN_S)
        if message is None:
            raise TooLong(f"{topic}/{number} cannot be read: no answer in {READ_WITHIN_S:.0f} s")
        if time.monotonic() > deadline:
            raise TooLong(f"{topic}/{number} cannot be read to its end, {end}, in {READ_ALL_WITHIN_S:.0f} s")
        if message.error() is None:
            if message.offset() >= end:
                return
            yield message
        elif message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
            return
        elif not message.error().retriable():
            raise RuntimeError(f"{topic}/{number} cannot be read: {message.error()}")


_AGAIN = """
WITH t AS (SELECT topic_id FROM outbox.broker_topic WHERE topic = %(topic)s),
b AS (
    UPDATE outbox.broker_partition p SET next_offset = next_offset + 1 FROM t
    WHERE p.topic_id = t.topic_id AND partition = %(partition)s RETURNING p.topic_id, p.next_offset - 1 AS place
)
INSERT INTO outbox.broker_message ("offset", topic_id, partition, key, value, headers)
SELECT b.place, m.topic_id, m.partition, m.key, m.value, m.headers FROM b JOIN outbox.broker_message m USING (topic_id)
WHERE m.partition = %(partition)s AND m."offset" = %(offset)s LIMIT 1
"""


def publish_again(topic: Topic, source: random.Random) -> None:
    """Copies of messages that are on the topic, in any order, behind the others of their partition."""
    (_again_local if topic.broker == "local" else _again_kafka)(topic, source)


def _again_local(topic: Topic, source: random.Random) -> None:
    query = """SELECT m.partition, m."offset" FROM outbox.broker_message m JOIN outbox.broker_topic t USING (topic_id)
               WHERE t.topic = %s ORDER BY 1, 2"""
    with psycopg.connect(topic.address, autocommit=True) as connection:
        places = connection.execute(query, [topic.name]).fetchall()
        for partition, offset in source.sample(places, min(COPIES, len(places))):
            given = {"topic": topic.name, "partition": partition, "offset": offset}
            connection.execute(_AGAIN, given)


def _again_kafka(topic: Topic, source: random.Random) -> None:
    messages = [message for partition in _raw(topic) for message in partition]
    producer = confluent_kafka.Producer({"bootstrap.servers": topic.address})
    for message in source.sample(messages, min(COPIES, len(messages))):
        producer.produce(topic.name, message.value(), message.key(), message.partition(), headers=message.headers())
    if producer.flush(READ_WITHIN_S):
        raise RuntimeError("the copies could not be published")
