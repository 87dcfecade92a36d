"""A bare loop that produces rows already in memory, by each client of Kafka: what the broker's client alone takes.

In a process of its own. It is given the same messages as a relay makes of the rows, and the relay's settings of the
producer (idempotent, acknowledged by all, the same codec and batches); it notes no offsets and heeds no refusal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import psycopg

from benchmarks.draining import WARM_SHARE
from benchmarks.elsewhere import elsewhere
from outbox.broker import KafkaSettings, Message, open_kafka
from outbox.broker.confluent_producer import BATCH_BYTES_MAX, QUEUE_KIB_MAX, QUEUE_MESSAGES_MAX
from outbox.broker.kafka_python_producer import BATCH_BYTES
from outbox.log.as_sent import read_as_sent
from outbox.relay.rows import COLUMNS, OutboxRow, outbox_rows

ROWS: Final = f"""
SELECT {COLUMNS} FROM (
    SELECT position AS seq, position, NULL AS topic, NULL AS key, NULL::jsonb AS headers, NULL::bytea AS payload
    FROM outbox.event ORDER BY position DESC LIMIT %(rows)s
) o JOIN outbox.event e USING (position)
"""

Loop = Callable[[Sequence[Message]], None]


def rate(dsn: str, kafka: KafkaSettings, prefix: str, rows: int) -> float:
    """Messages a second of the last rows of the log, in a process of its own."""
    return elsewhere(_produce, dsn, kafka, prefix, rows)


def read(dsn: str, prefix: str, rows: int) -> list[Message]:
    """The messages of the last rows of the log, whole."""
    with psycopg.connect(dsn) as connection, connection.cursor(binary=True, row_factory=outbox_rows) as cursor:
        read_as_sent(cursor)
        found: list[OutboxRow] = cursor.execute(ROWS, {"prefix": prefix, "rows": rows}).fetchall()
    return [Message(row.topic, row.key, row.value, row.headers) for row in found]


def _produce(dsn: str, kafka: KafkaSettings, prefix: str, rows: int) -> float:
    messages = read(dsn, prefix, rows)
    _make_topics(kafka, messages[:1])
    loop = {"confluent": confluent, "kafka-python": kafka_python}[kafka.client](kafka)
    warm = rows // WARM_SHARE
    loop(messages[:warm])
    began = time.perf_counter()
    loop(messages[warm:])
    return (rows - warm) / (time.perf_counter() - began)


def _make_topics(kafka: KafkaSettings, messages: Sequence[Message]) -> None:
    broker = open_kafka(kafka)
    broker.producer().publish(messages)
    broker.close()


def confluent(kafka: KafkaSettings) -> Loop:
    """confluent-kafka, with librdkafka's own partitioner of the Java kind."""
    from confluent_kafka import Producer

    options = {
        "bootstrap.servers": kafka.bootstrap,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": kafka.compression,
        "linger.ms": kafka.linger_ms,
        "batch.size": BATCH_BYTES_MAX,
        "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
        "queue.buffering.max.kbytes": QUEUE_KIB_MAX,
    }
    producer = Producer(options)

    def loop(messages: Sequence[Message]) -> None:
        for message in messages:
            headers = cast("list[Any]", message.headers)
            while True:
                try:
                    producer.produce(message.topic, message.value, message.key, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.flush()

    return loop


def kafka_python(kafka: KafkaSettings) -> Loop:
    """kafka-python, with its own partitioner."""
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap,
        enable_idempotence=True,
        acks="all",
        compression_type=None if kafka.compression == "none" else kafka.compression,
        linger_ms=kafka.linger_ms,
        batch_size=BATCH_BYTES,
        metrics_enabled=False,
    )

    def loop(messages: Sequence[Message]) -> None:
        for message in messages:
            producer.send(message.topic, message.value, message.key.encode(), list(message.headers))
        producer.flush()

    return loop
