"""What only the local broker has: leases by the database's clock, and retention by whole table partitions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from zlib import crc32

import psycopg
import pytest

from outbox.broker import LocalBroker, LocalSettings, Message, Producer, TopicPartition
from outbox.broker.local_link import BoundedConnection, Link
from outbox.broker.local_settings import PART_MESSAGES, PARTS
from outbox.errors import BrokerError, MessageRefused, SettingsError
from outbox.log.migrate import FOLDER
from tests.conformance.brokers import collect, earliest, first_times, numbered, own_database, poll_until
from tests.conftest import Tidy

SCRIPT = (FOLDER / "0002_local_broker.sql").read_text()


@pytest.fixture
def dsn(address: Callable[[str], str]) -> Iterator[str]:
    with own_database(address("postgres")) as dsn:
        yield dsn


@pytest.fixture
def watch(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def broker(dsn: str, tidy: Tidy) -> LocalBroker:
    return tidy(LocalBroker(dsn, LocalSettings(lease_s=1.5)))


@pytest.fixture
def producer(broker: LocalBroker, tidy: Tidy) -> Producer:
    return tidy(broker.producer())


def one(connection: psycopg.Connection, query: str):
    return connection.execute(query).fetchone()[0]


def test_the_script_may_run_twice_and_alone(dsn, tidy) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCRIPT.encode())
        connection.execute("DROP SCHEMA outbox CASCADE")
        connection.execute(SCRIPT.encode())
        connection.execute(SCRIPT.encode())
    assert list(tidy(LocalBroker(dsn).producer()).publish(numbered("t", 1)).values()) == [0]


def test_a_database_without_the_tables_says_what_to_run(dsn, watch, tidy) -> None:
    watch.execute("DROP SCHEMA outbox CASCADE")
    with pytest.raises(BrokerError, match="outbox migrate"):
        tidy(LocalBroker(dsn).producer()).publish(numbered("t", 1))


def fill_parts(connection: psycopg.Connection, parts: int) -> None:
    """Pretend that whole parts were published: the sequence says which part a message goes to."""
    connection.execute("SELECT setval('outbox.broker_message_seq', %s)", [parts * PART_MESSAGES + 1])


def rows_by_part(connection: psycopg.Connection) -> dict[int, int]:
    query = "SELECT ((seq / 262144) % 8)::int, count(*) FROM outbox.broker_message GROUP BY 1"
    return dict(connection.execute(query).fetchall())


def test_old_messages_leave_by_whole_parts_and_the_kept_ones_stay(broker, watch, producer) -> None:
    for part in range(5):
        fill_parts(watch, part)
        producer.publish(numbered("t", 10))
    assert rows_by_part(watch) == dict.fromkeys(range(5), 10)
    assert broker.trim(3 * PART_MESSAGES + 100) == 1
    assert rows_by_part(watch) == dict.fromkeys(range(1, 5), 10)
    assert broker.trim(0) == 3
    assert rows_by_part(watch) == {4: 10}
    assert broker.trim(0) == 0
    assert one(watch, "SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'broker_message_0'") == 0
    assert sum(broker.ends(["t"]).values()) == 50


def test_a_ring_that_comes_round_before_it_was_trimmed_mixes_ages_and_loses_nothing_new(
    broker, watch, producer
) -> None:
    fill_parts(watch, 0)
    producer.publish(numbered("t", 10))
    fill_parts(watch, PARTS)
    producer.publish(numbered("t", 10))
    fill_parts(watch, PARTS + 1)
    producer.publish(numbered("t", 10))
    assert broker.trim(PART_MESSAGES + 100) == 0
    assert rows_by_part(watch) == {0: 20, 1: 10}


def test_a_producer_trims_by_itself(dsn, watch, monkeypatch, tidy) -> None:
    monkeypatch.setattr("outbox.broker.local_producer.TRIM_EVERY_MESSAGES", 10)
    producer = tidy(LocalBroker(dsn, LocalSettings(keep_messages=1_000)).producer())
    for part in range(3):
        fill_parts(watch, part)
        producer.publish(numbered("t", 10))
    assert rows_by_part(watch) == {2: 10}


def test_a_part_in_use_is_left_for_the_next_time(broker, dsn, watch, producer) -> None:
    producer.publish(numbered("t", 10))
    fill_parts(watch, 3)
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM outbox.broker_message")
        assert broker.trim(0) == 0
    assert broker.trim(0) == 1


def test_a_reader_behind_what_was_trimmed_goes_on_at_the_earliest_and_says_so(broker, watch, capsys, producer) -> None:
    producer.publish([Message("t", "a", b"1")])
    consumer = broker.consumer("g", ["t"], earliest)
    collect(consumer, 1)
    producer.publish([Message("t", "a", b"2")])
    fill_parts(watch, 3)
    broker.trim(0)
    producer.publish([Message("t", "a", b"3")])
    assert [(d.offset, d.value) for d in collect(consumer, 1)] == [(2, b"3")]
    producer.publish([Message("t", "a", b"4")])
    fill_parts(watch, 6)
    broker.trim(0)
    assert list(consumer.poll(10, 0.2)) == []
    producer.publish([Message("t", "a", b"5")])
    assert [(d.offset, d.value) for d in collect(consumer, 1)] == [(4, b"5")]
    assert capsys.readouterr().out.count("broker.gap") == 2
    consumer.close()


def test_a_reader_goes_on_behind_messages_trimmed_from_the_middle(broker, dsn, watch, producer) -> None:
    for part, count in enumerate((5, 50, 5)):
        fill_parts(watch, part)
        producer.publish([Message("t", "a", b"%d" % part)] * count)
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM outbox.broker_message_0")
        assert broker.trim(0) == 1
    consumer = broker.consumer("g", ["t"], earliest)
    found = []
    poll_until(lambda: (found.extend(consumer.poll(10, 0.1)), len(found) == 10)[1])
    assert [d.value for d in found] == [b"0"] * 5 + [b"2"] * 5
    consumer.close()


def test_a_partition_that_was_trimmed_goes_on_while_others_have_much_to_read(broker, watch, producer) -> None:
    producer.publish([Message("t", "a", b"old")] * 50)
    fill_parts(watch, 1)
    producer.publish([Message("t", "a", b"new")])
    others = [k for k in map(str, range(50)) if crc32(k.encode()) % 4 != crc32(b"a") % 4]
    producer.publish([Message("t", others[n % len(others)], b"other") for n in range(400)])
    consumer = broker.consumer("g", ["t"], lambda partition: 1)
    consumer.poll(4, 5.0)
    broker.trim(0)
    found = [d.value for _ in range(50) for d in consumer.poll(4, 5.0)]
    assert b"new" in found
    assert found[-1] == b"other", "others had more"
    consumer.close()


def test_a_member_that_slept_through_its_lease_reads_nothing_of_what_it_lost(dsn, broker, watch, producer) -> None:
    sleeper = LocalBroker(dsn, LocalSettings(lease_s=1.5, poll_interval_max_s=0.1))
    asleep, awake = sleeper.consumer("g", ["t"], earliest), broker.consumer("g", ["t"], earliest)
    poll_until(lambda: len(asleep.assignment()) == 4, asleep)
    poll_until(lambda: len(awake.assignment()) == 4, awake)
    producer.publish(numbered("t", 20))
    asleep._share_at = time.monotonic() + 60  # it has not yet noticed: only the lease's epoch can stop it
    assert list(asleep.poll(100, 0.0)) == []
    assert len(collect(awake, 20)) == 20
    asleep.close()
    awake.close()
    sleeper.close()


def test_a_member_busy_for_longer_than_its_lease_keeps_its_partitions(broker, watch) -> None:
    busy, other = broker.consumer("g", ["t"], earliest), broker.consumer("g", ["t"], earliest)
    poll_until(lambda: len(busy.assignment()) == len(other.assignment()) == 2, busy, other)
    before = watch.execute("SELECT topic_id, partition, member, epoch FROM outbox.broker_lease ORDER BY 2").fetchall()
    began_s = time.monotonic()
    poll_until(lambda: time.monotonic() - began_s > 4.0, other)
    after = watch.execute("SELECT topic_id, partition, member, epoch FROM outbox.broker_lease ORDER BY 2").fetchall()
    assert before == after
    busy.close()
    other.close()


def test_closing_the_last_consumer_ends_the_heartbeat(broker) -> None:
    consumer = broker.consumer("g", ["t"], earliest)
    consumer.poll(1, 0.0)
    assert "outbox-pulse" in {thread.name for thread in threading.enumerate()}
    consumer.close()
    assert "outbox-pulse" not in {thread.name for thread in threading.enumerate()}


def test_a_lost_connection_is_raised_once_and_then_made_again(broker, watch, producer) -> None:
    consumer = broker.consumer("g", ["t"], earliest)
    producer.publish(numbered("t", 10))
    collect(consumer, 10)
    watch.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    for use in (lambda: producer.publish(numbered("t", 1)), lambda: consumer.poll(1, 0.1)):
        with pytest.raises(BrokerError, match="cannot be reached"):
            use()
    producer.publish(numbered("t", 5))
    assert len(collect(consumer, 5)) == 5
    consumer.close()


def test_an_idle_consumer_costs_next_to_nothing(broker, producer) -> None:
    producer.publish(numbered("t", 1))
    consumer = broker.consumer("g", ["t"], earliest)
    collect(consumer, 1)
    cpu_s, began_s = time.process_time(), time.monotonic()
    assert list(consumer.poll(100, 5.0)) == []
    assert time.monotonic() - began_s >= 5.0
    assert time.process_time() - cpu_s < 0.25
    consumer.close()


def test_commits_stand_beside_the_lease(broker, watch, producer) -> None:
    producer.publish(numbered("t", 20))
    consumer = broker.consumer("g", ["t"], earliest)
    collect(consumer, 20)
    consumer.commit({TopicPartition("t", 2): 7})
    assert one(watch, "SELECT committed FROM outbox.broker_lease WHERE partition = 2") == 7
    consumer.close()


def test_publishers_of_many_partitions_in_any_order_never_wait_in_a_circle(dsn, broker) -> None:
    topics, batches = ["a", "b", "c"], 30

    def publish(turn: int) -> None:
        order = topics[turn:] + topics[:turn]
        with closing(LocalBroker(dsn).producer()) as producer:
            for batch in range(batches):
                producer.publish(
                    [Message(topic, f"{turn}-{k}", f"{batch}".encode()) for topic in order for k in range(9)]
                )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(publish, range(3)))
    consumer = broker.consumer("g", topics, earliest)
    found = collect(consumer, 3 * 3 * 9 * batches)
    assert len({(d.topic, d.partition, d.offset) for d in found}) == len(found)
    assert sum(broker.ends(topics).values()) == len(found)
    for topic in topics:
        for key in {d.key for d in found}:
            values = [d.value for d in found if (d.topic, d.key) == (topic, key)]
            assert first_times(values) == [f"{batch}".encode() for batch in range(batches)]
    consumer.close()


def test_a_batch_of_many_megabytes_is_one_transaction(broker, watch, producer) -> None:
    messages = [Message("t", f"k{i}", bytes(9_000_000)) for i in range(8)]
    producer.publish(messages)
    assert one(watch, "SELECT count(DISTINCT xmin::text) FROM outbox.broker_message") == 1
    assert one(watch, "SELECT count(*) FROM outbox.broker_message") == 8


@pytest.mark.parametrize("wrong", [{"partitions": 0}, {"lease_s": 0}, {"keep_messages": -1}, {"keep_messages": 10**9}])
def test_a_wrong_setting_is_named(wrong) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        LocalSettings(**wrong)


def test_the_ring_in_the_settings_is_the_one_in_the_script() -> None:
    assert f"(seq / {PART_MESSAGES}) % {PARTS}" in SCRIPT
    assert f"0..{PARTS - 1} LOOP" in SCRIPT


def test_any_number_of_topics_may_be_refused_at_once(broker: LocalBroker, producer: Producer) -> None:
    topics = sorted((f"no topic {n}" for n in range(2_000)), reverse=True)
    with pytest.raises(MessageRefused) as refused:
        producer.publish([Message("fine", "k", b""), *(Message(topic, "k", b"") for topic in topics)])
    assert refused.value.index == 1
    assert broker.ends(["fine"])[TopicPartition("fine", crc32(b"k") % 4)] == 1


def test_a_short_timeout_is_a_bound(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, connect = [], BoundedConnection.connect

    def noting(dsn: str, **options: Any) -> BoundedConnection:
        asked.append(options)
        return connect(dsn, **options)

    monkeypatch.setattr(BoundedConnection, "connect", noting)
    link = Link(dsn, LocalSettings(timeout_s=0.0004))
    with link.use():
        link.close()
    assert asked[0]["connect_timeout"] >= 1
    assert asked[0]["tcp_user_timeout"] >= 1


def test_notifications_do_not_pile_up_while_there_is_always_something_to_read(
    broker: LocalBroker, producer: Producer
) -> None:
    consumer = broker.consumer("g", ["t"], earliest)
    poll_until(lambda: bool(consumer.assignment()), consumer)
    connection = consumer._link._connection
    for n in range(300):
        producer.publish([Message("t", "k", b"")])
        if n % 100 == 99:
            consumer._share_at = 0.0  # as a second or so later
        assert consumer.poll(10, 10.0)
    assert len(connection._notifies_backlog) < 150
    consumer.close()
