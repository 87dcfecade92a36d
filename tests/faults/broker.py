"""Reading everything that is on a run's topic, without the product's clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import confluent_kafka
import psycopg

from tests.faults.checks import Published

READ_WITHIN_S = 20.0

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


def _kafka(topic: Topic) -> list[list[Published]]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": topic.address,
            "group.id": f"faults.{topic.name}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    try:
        numbers = consumer.list_topics(topic.name, timeout=READ_WITHIN_S).topics[topic.name].partitions
        return [list(_partition(consumer, topic.name, number)) for number in numbers]
    finally:
        consumer.close()


def _partition(consumer: confluent_kafka.Consumer, topic: str, number: int) -> Iterator[Published]:
    place = confluent_kafka.TopicPartition(topic, number)
    first, end = consumer.get_watermark_offsets(place, timeout=READ_WITHIN_S)
    if first == end:
        return
    consumer.assign([confluent_kafka.TopicPartition(topic, number, first)])
    while consumer.position([place])[0].offset < end:
        message = consumer.poll(READ_WITHIN_S)
        if message is None or message.error():
            raise RuntimeError(f"{topic}/{number} cannot be read: {message and message.error()}")
        headers = dict(message.headers() or [])
        yield Published(message.key().decode(), int(headers["version"]), headers["id"].decode())
