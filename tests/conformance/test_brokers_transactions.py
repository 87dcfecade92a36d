"""What every broker's transactions must do, on the real servers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from deploy.local.ports import reserve
from outbox.broker import Broker, Message, Transactions
from outbox.broker.protocol import Places
from outbox.errors import BrokerUnavailable, Fenced, MessageRefused, SettingsError
from tests.conformance.brokers import Kind, by_key, collect, earliest, numbered
from tests.conftest import Tidy

Open = Callable[[], Transactions]


@pytest.fixture
def take_over(kind: Kind, where: str, topic: str, tidy: Tidy) -> Open:
    """The next publisher of the one name, on connections of its own, not recovered yet."""
    return lambda: tidy(tidy(kind.open(where, 30.0)).transactions(f"{topic}.__relay"))


@pytest.fixture
def nowhere(kind: Kind) -> Iterator[str]:
    """An address where nothing listens."""
    held = reserve(1)
    yield f"127.0.0.1:{held.ports[0]}" if kind.server == "kafka" else f"postgresql://u@127.0.0.1:{held.ports[0]}/d"
    held.close()


def read(broker: Broker, topic: str, count: int) -> list[bytes | None]:
    """Every committed message; fails if there are more or fewer than ``count``."""
    consumer = broker.consumer(f"g{uuid.uuid4().hex[:12]}", [topic], earliest)
    found = [d.value for d in collect(consumer, count)]
    assert list(consumer.poll(10, 1.0)) == []
    consumer.close()
    return found


def test_a_new_name_has_no_note(take_over) -> None:
    assert take_over().recover() is None


def test_a_batch_and_its_note_are_committed_together_and_the_next_one_reads_the_last_note(
    broker, take_over, topic
) -> None:
    one, messages = take_over(), numbered(topic, 40)
    one.recover()
    noted: list[Places] = []
    placed = one.publish(messages[:30], lambda places: noted.append(places) or b"first")
    assert [placed] == noted
    one.publish(messages[30:], lambda places: b"last")
    assert take_over().recover() == b"last"
    assert sorted(read(broker, topic, 40)) == sorted(m.value for m in messages)


def test_places_are_the_last_at_which_a_reader_finds_messages(broker, take_over, topic, tidy) -> None:
    one, messages = take_over(), numbered(topic, 30)
    one.recover()
    placed = {**one.publish(messages[:20]), **one.publish(messages[20:])}
    found = collect(tidy(broker.consumer(topic, [topic], earliest)), 30)
    partitions = {(d.topic, d.partition) for d in found}
    assert placed == {p: max(d.offset for d in found if (d.topic, d.partition) == p) for p in partitions}


def test_the_order_of_a_key_is_kept_over_transactions(broker, take_over, topic, tidy) -> None:
    one, messages = take_over(), numbered(topic, 200)
    one.recover()
    for at in range(0, 200, 40):
        one.publish(messages[at : at + 40], lambda places: b"n")
    found = collect(tidy(broker.consumer(topic, [topic], earliest)), 200)
    assert by_key(found) == {f"stream-{k}": [m.value for m in messages if m.key == f"stream-{k}"] for k in range(7)}


def test_a_note_stays_the_last_one_while_batches_without_a_note_or_refused_ones_follow(take_over, kind, topic) -> None:
    one = take_over()
    one.recover()
    one.publish(numbered(topic, 1), lambda places: b"kept")
    for _ in range(60):
        with pytest.raises(MessageRefused):
            one.publish([*numbered(topic, 2), Message(topic, "a", b"x" * kind.too_large_bytes)], lambda places: b"no")
    one.publish(numbered(topic, 1))
    assert take_over().recover() == b"kept"


def test_of_many_notes_the_last_one_is_found(take_over, topic) -> None:
    one = take_over()
    one.recover()
    for n in range(70):
        one.publish(numbered(topic, 1), lambda places, n=n: b"%d" % n)
    assert take_over().recover() == b"69"


def test_a_refused_message_is_named_by_its_index_and_nothing_of_its_batch_is_seen(
    broker, take_over, kind, topic
) -> None:
    one, messages = take_over(), numbered(topic, 10)
    one.recover()
    large = Message(topic, "stream-0", b"x" * kind.too_large_bytes)
    with pytest.raises(MessageRefused) as refusal:
        one.publish([*messages[:6], large, *messages[6:]], lambda places: b"wrong")
    assert refusal.value.index == 6
    one.publish(messages, lambda places: b"right")
    assert sorted(read(broker, topic, 10)) == sorted(m.value for m in messages)
    assert take_over().recover() == b"right"


def test_a_topic_that_cannot_be_is_refused_by_its_first_message_and_the_rest_goes_on(broker, take_over, topic) -> None:
    one, messages = take_over(), numbered(topic, 3)
    one.recover()
    with pytest.raises(MessageRefused) as refusal:
        one.publish([*messages, Message("no such/topic!", "a", b"")])
    assert refusal.value.index == 3
    one.publish(messages)
    read(broker, topic, 3)


def test_who_has_been_taken_over_from_publishes_nothing_more(broker, take_over, topic) -> None:
    old, new = take_over(), take_over()
    old.recover()
    old.publish(numbered(topic, 2), lambda places: b"old")
    assert new.recover() == b"old"
    with pytest.raises((Fenced, BrokerUnavailable)):
        old.publish(numbered(topic, 5), lambda places: b"zombie")
    new.publish(numbered(topic, 1), lambda places: b"new")
    with pytest.raises((Fenced, BrokerUnavailable)):
        old.publish(numbered(topic, 5), lambda places: b"zombie")
    assert take_over().recover() == b"new"
    read(broker, topic, 3)


def test_a_name_that_cannot_be_a_topics_is_a_wrong_setting(kind, broker, tidy) -> None:
    one = tidy(broker.transactions("no such/topic!"))
    if kind.server == "kafka":
        with pytest.raises(SettingsError, match="name"):
            one.recover()
    else:
        assert one.recover() is None


def test_a_dead_broker_is_known_in_bounded_time(kind, nowhere, tidy) -> None:
    with pytest.raises(BrokerUnavailable):
        tidy(tidy(kind.open(nowhere, 2.0)).transactions("t.__relay")).recover()
