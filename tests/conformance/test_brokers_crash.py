"""A broker that crashes while it is published to loses nothing and turns nothing round."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from deploy.local.local import Local
from outbox.broker import Broker, Message, Producer
from outbox.errors import BrokerUnavailable
from tests.conformance.brokers import KINDS, WAIT_S, Kind, by_key, earliest, first_times, installed, poll_until
from tests.conftest import Tidy

BATCH = 200
BATCHES_BEFORE = 10
BATCHES_AFTER = 10


@pytest.fixture(scope="module")
def servers() -> Iterator[Local]:
    """Servers of this module's own, as they are crashed."""
    with Local() as local:
        yield local


class Publishing:
    """Publishes batches in a thread, each again and again until it is taken, as the relay does."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self.sent: list[Message] = []
        self.batches = 0
        self.failures: list[str] = []
        self._producer, self._topic = producer, topic
        self._left: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> None:
        """A few more batches, then the end."""
        self._left = BATCHES_AFTER
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), self.failures

    def _run(self) -> None:
        while self._left is None or self._left > 0:
            at = len(self.sent)
            batch = [Message(self._topic, f"s-{i % 11}", f"{i}".encode()) for i in range(at, at + BATCH)]
            self._publish(batch)
            self.sent += batch
            self.batches += 1
            if self._left is not None:
                self._left -= 1

    def _publish(self, batch: list[Message]) -> None:
        while True:
            try:
                self._producer.publish(batch)
            except BrokerUnavailable as error:
                self.failures.append(str(error))
                continue
            return


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("timeout_s", [3.0, 30.0], ids=["publishing_gives_up", "publishing_waits"])
def test_a_crash_in_mid_publish_loses_nothing_and_keeps_each_key_in_order(
    kind: Kind, timeout_s: float, servers: Local, tidy: Tidy
) -> None:
    address = servers.start(kind.server)[0].address
    with installed(kind, address) as where:
        crash_and_restart(tidy(kind.open(where, timeout_s)), kind.server, timeout_s, servers, tidy)


def crash_and_restart(broker: Broker, server: str, timeout_s: float, servers: Local, tidy: Tidy) -> None:
    topic = f"t{uuid.uuid4().hex[:12]}.entity"
    consumer = tidy(broker.consumer(topic, [topic], earliest))
    found = poll_until(lambda: bool(consumer.assignment()), consumer)
    publishing = Publishing(tidy(broker.producer()), topic)
    found += poll_until(lambda: publishing.batches >= BATCHES_BEFORE, consumer)
    servers.kill(server)
    if timeout_s < WAIT_S / 10:
        wait_for_failure(publishing)
    servers.restart(server)
    publishing.finish()
    messages, until_s = publishing.sent, time.monotonic() + WAIT_S
    wanted = {message.value for message in messages}
    while missing := wanted - {d.value for d in found}:
        assert time.monotonic() < until_s, f"{len(missing)} of {len(wanted)} messages never came"
        with suppress(BrokerUnavailable):
            found += consumer.poll(1_000, 1.0)
    sent: dict[str, list[bytes | None]] = {}
    for message in messages:
        sent.setdefault(message.key, []).append(message.value)
    assert {key: first_times(values) for key, values in by_key(found).items()} == sent


def wait_for_failure(publishing: Publishing) -> None:
    done = threading.Event()
    for _ in range(int(WAIT_S * 10)):
        if publishing.failures:
            return
        done.wait(0.1)
    raise AssertionError("publishing to a dead server did not fail")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_frozen_server_holds_nobody_up_for_ever(kind: Kind, servers: Local, tidy: Tidy) -> None:
    server = servers.start(kind.server)[0]
    with installed(kind, server.address) as where:
        broker = tidy(kind.open(where, 2.0))
        topic = f"t{uuid.uuid4().hex[:12]}.entity"
        producer, consumer = tidy(broker.producer()), tidy(broker.consumer(topic, [topic], earliest))
        producer.publish([Message(topic, "a", b"1")])
        found = poll_until(lambda: bool(consumer.assignment()), consumer)
        server.pause()
        poll_until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED)
        try:
            began_s = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                producer.publish([Message(topic, "a", b"2"), Message(topic, "a", b"3")])
            with pytest.raises(BrokerUnavailable):
                poll_until(lambda: False, consumer)
            assert time.monotonic() - began_s < 30.0
        finally:
            server.resume()
        publish_at_last(producer, [Message(topic, "a", b"2"), Message(topic, "a", b"3")])
        until_s = time.monotonic() + WAIT_S
        while {d.value for d in found} != {b"1", b"2", b"3"}:
            assert time.monotonic() < until_s
            with suppress(BrokerUnavailable):
                found += consumer.poll(100, 1.0)
        assert first_times([d.value for d in found]) == [b"1", b"2", b"3"]


def publish_at_last(producer: Producer, messages: list[Message]) -> None:
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            producer.publish(messages)
        except BrokerUnavailable:
            assert time.monotonic() < until_s
            continue
        return
