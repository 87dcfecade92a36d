"""Events sent at a rate, and a consumer of Kafka in a process of its own that says when it had each of them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from typing import Final, Self

from benchmarks.measuring import say

WITHIN_S: Final = 60.0


def paced(count: int, rate: int, batch: int) -> Iterator[int]:
    """The number of each batch's first, when its time has come; says how fast that went."""
    started = time.monotonic()
    for number in range(0, count, batch):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        yield number
    say(f"{count / (time.monotonic() - started):,.0f} events/s, asked for {rate:,}")


class Consumer:
    """Reads a topic from its beginning. A message's header ``id`` says which event it is."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_consume, args=(bootstrap, topic, there), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def take(self, ids: Collection[str]) -> dict[str, float]:
        """When each of these was there (``time.monotonic``); what else has come is forgotten. Raises TimeoutError."""
        self._here.send(set(ids))
        if not self._here.poll(WITHIN_S):
            raise TimeoutError(f"not all of {len(ids)} events came within {WITHIN_S:g} s")
        seen: dict[str, float] = self._here.recv()
        return {id_: seen[id_] for id_ in ids}


def _consume(bootstrap: str, topic: str, there: Connection) -> None:
    from confluent_kafka import Consumer as KafkaConsumer

    consumer = KafkaConsumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    seen: dict[str, float] = {}
    awaited: set[str] | None = None
    while True:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            id_ = dict(message.headers())["id"].decode()
            seen[id_] = time.monotonic()
            if awaited is not None:
                awaited.discard(id_)
        if awaited is None and there.poll():
            awaited = there.recv() - seen.keys()
        if awaited is not None and not awaited:
            there.send(seen)
            seen, awaited = {}, None
