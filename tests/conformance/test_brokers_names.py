"""Members with names, which only Kafka has: one that is started again has its partitions back, of two the older ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from outbox.broker import Consumer, Producer, TopicPartition
from outbox.errors import MemberFenced
from tests.conformance.brokers import WAIT_S, collect, earliest, numbered, open_kafka_client, poll_until
from tests.conftest import Tidy

LONG_S = 2 * WAIT_S
"""A session for which no test would wait."""
SHORT_S = 6.0
"""As short as the servers take it."""

Named = Callable[..., Consumer]
pytestmark = pytest.mark.parametrize("client", ["kafka-python", "confluent"])


@pytest.fixture
def bootstrap(address: Callable[[str], str]) -> str:
    return address("kafka")


@pytest.fixture
def group() -> str:
    return f"g{uuid.uuid4().hex[:12]}"


@pytest.fixture
def named(client: str, bootstrap: str, group: str, topic: str, tidy: Tidy) -> Named:
    """Make a member with a name."""

    def member(name: str, session_s: float = LONG_S, start=earliest, **more: float) -> Consumer:
        broker = tidy(open_kafka_client(client, bootstrap, 30.0, member=name, session_timeout_s=session_s, **more))
        return tidy(broker.consumer(group, [topic], start))

    return member


@pytest.fixture
def producer(client: str, bootstrap: str, tidy: Tidy) -> Producer:
    return tidy(tidy(open_kafka_client(client, bootstrap, 30.0)).producer())


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A member of its own process; killed at the end."""
    command = [sys.executable, "-m", "tests.conformance.brokers.member", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def says(member: subprocess.Popen[str], wanted: str) -> None:
    """Wait until it has printed this line."""
    while (line := member.stdout.readline()).strip() != wanted:
        assert line, f"it ended without {wanted!r}"


def has_all(*consumers: Consumer) -> None:
    poll_until(lambda: len(consumers[0].assignment()) == 4, *consumers)


def test_one_that_was_killed_has_its_partitions_back_while_its_session_lasts(
    client, bootstrap, group, topic, named, producer
) -> None:
    with process(client, bootstrap, group, topic, "a", str(LONG_S)) as killed:
        says(killed, "4")
    again = named("a")
    has_all(again)
    producer.publish(numbered(topic, 40))
    assert len(collect(again, 40)) == 40


def test_one_that_was_closed_and_is_opened_again_moves_nobodys_partitions(named) -> None:
    asked: list[TopicPartition] = []
    first = named("a", 15.0)
    has_all(first)
    other = named("b", 15.0, start=asked.append)
    poll_until(lambda: len(first.assignment()) == len(other.assignment()) == 2, first, other)
    before, had = len(asked), first.assignment()
    first.close()
    again = named("a", 15.0)
    poll_until(lambda: len(again.assignment()) == 2, again, other)
    assert again.assignment() == had
    assert len(asked) == before


def test_of_two_with_one_name_the_older_is_fenced_for_good_and_the_newer_reads_on(topic, named, producer) -> None:
    older = named("a", SHORT_S)
    has_all(older)
    newer = named("a", SHORT_S)
    has_all(newer)
    for _ in range(3):
        with pytest.raises(MemberFenced, match="OUTBOX_KAFKA__MEMBER") as fenced:
            poll_until(lambda: False, older, newer)
        assert fenced.value.member == "a"
    older.close()
    producer.publish(numbered(topic, 40))
    assert len(collect(newer, 40)) == 40


def test_one_that_stood_still_for_longer_than_its_session_does_not_put_out_its_successor(
    client, bootstrap, group, topic, named
) -> None:
    with process(client, bootstrap, group, topic, "a", str(SHORT_S)) as zombie:
        says(zombie, "4")
        zombie.send_signal(signal.SIGSTOP)
        until_s = time.monotonic() + SHORT_S * 1.5
        successor = named("a", SHORT_S)
        poll_until(lambda: time.monotonic() > until_s, successor)
        zombie.send_signal(signal.SIGCONT)
        poll_until(lambda: zombie.poll() is not None, successor)
        says(zombie, "fenced")
    assert len(successor.assignment()) == 4


def test_one_that_stood_still_for_longer_than_its_session_returns_if_nobody_has_its_name(
    client, bootstrap, group, topic, named
) -> None:
    with process(client, bootstrap, group, topic, "a", str(SHORT_S)) as member:
        says(member, "4")
        member.send_signal(signal.SIGSTOP)
        other = named("b", SHORT_S)
        has_all(other)
        member.send_signal(signal.SIGCONT)
        poll_until(lambda: len(other.assignment()) == 2, other)
        says(member, "2")


def test_one_that_was_busy_for_longer_than_it_may_returns_while_the_group_still_knows_it(named) -> None:
    asked: list[TopicPartition] = []
    busy = named("a", SHORT_S, start=asked.append, poll_interval_max_s=SHORT_S)
    has_all(busy)
    threading.Event().wait(SHORT_S * 1.6)  # its work, and the client looks every third of a session only
    poll_until(lambda: len(asked) == 8, busy)
    has_all(busy)


CLOSING = """
import sys, time
from tests.conformance.brokers import earliest, open_kafka_client

client, bootstrap, group, topic = sys.argv[1:]
for wait_s in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2):
    members = []
    for number in range(20):
        broker = open_kafka_client(client, bootstrap, 30.0, member=f"m{number}")
        members.append(broker.consumer(f"{group}-{wait_s}-{number}", [topic], earliest))
        members[-1].poll(1, 0.0)
        broker.close()
    time.sleep(wait_s)
    for member in members:
        member.close()
"""


def test_ones_that_are_closed_before_they_take_up_what_they_are_given_end(client, bootstrap, group, topic) -> None:
    """librdkafka waited for good for the answer to what it had given, and so did all threads of the process."""
    subprocess.run([sys.executable, "-c", CLOSING, client, bootstrap, group, topic], check=True, timeout=WAIT_S)
