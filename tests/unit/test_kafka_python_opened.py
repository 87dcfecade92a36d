"""A client of kafka-python that cannot be made leaves no thread and no file open behind."""

from __future__ import annotations

import gc
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox.broker.kafka_python import KafkaPythonBroker
from outbox.broker.kafka_python_consumer import KafkaPythonConsumer
from outbox.broker.kafka_python_producer import KafkaPythonProducer
from outbox.broker.kafka_python_transactions import KafkaPythonClient
from outbox.broker.protocol import Message
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import Topics
from outbox.errors import BrokerUnavailable

MESSAGE = Message("topic", "key", b"value")


def known() -> Topics:
    return Topics(lambda names: dict.fromkeys(names, 1), lambda _: None)


OPENED: dict[str, Callable[[KafkaSettings], object]] = {
    "admin": lambda settings: KafkaPythonBroker(settings).ends(["topic"]),
    "consumer": lambda settings: KafkaPythonConsumer(settings, "group", ["topic"], lambda _: None),
    "producer": lambda settings: KafkaPythonProducer(settings, known()).attempt([MESSAGE]),
    "transactions": lambda settings: KafkaPythonClient(settings, known(), "name").fence(),
}


@pytest.mark.parametrize("kind", OPENED)
def test_what_cannot_be_reached_leaves_nothing_behind(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "kafka")  # what is captured holds on to the errors, and they to their sockets

    def left() -> tuple[set[threading.Thread], int]:
        gc.collect()  # the client leaves the sockets of refused connections to it
        return set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))

    with socket.socket() as taken:  # bound, but nobody listens: no other process gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        settings = KafkaSettings(bootstrap=f"127.0.0.1:{taken.getsockname()[1]}", timeout_s=0.3)
        before = left()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="cannot be used"):
                OPENED[kind](settings)
        assert left() == before
