"""A leader of exactly once, stepped by hand on real brokers: a crash between any two of its steps, and zombies."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from outbox.broker import Broker, Message, Transactions
from outbox.database import connected
from outbox.errors import BrokerUnavailable, Fenced, LogWentBack
from outbox.log.append import append, send
from outbox.relay.engines import open_engine
from outbox.relay.exactly_once import ExactlyOnceLeader, recover
from outbox.relay.lease import take
from outbox.relay.parking import BEHIND, discard, parked, retry
from outbox.relay.settings import RelaySettings
from tests.conformance.brokers import KINDS, Kind, by_key, collect, earliest
from tests.integration.appending import event
from tests.relaying import drain, leading, step_until, until, without_slots

LARGE = b"x" * 2_000_001


class Died(Exception):
    """The process ends here."""


class Mortal:
    """Transactions that end the process just behind the broker's commit, or just before it, when told to."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.before = self.behind = False

    def recover(self) -> bytes | None:
        return self._transactions.recover()

    def publish(self, messages: list[Message], note: Any = None) -> Any:
        def noted(places: Any) -> Any:
            if self.before:
                raise Died
            return note(places)

        places = self._transactions.publish(messages, noted)
        if self.behind:
            raise Died
        return places

    def close(self) -> None:
        self._transactions.close()


@pytest.fixture(params=[k for k in KINDS if k.name != "kafka-python"], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def broker(kind: Kind, database: str, address: Callable[[str], str]) -> Iterator[Broker]:
    with closing(kind.open(database if kind.name == "local" else address("kafka"), 30.0)) as broker:
        yield broker


@pytest.fixture
def settings() -> RelaySettings:
    return RelaySettings(
        prefix=f"p{uuid.uuid4().hex[:10]}", page_min=10, page_max=10, delivery="exactly_once", lease_s=60
    )


@pytest.fixture
def lead(database: str, broker: Broker, settings: RelaySettings) -> Callable[..., Any]:
    """``with lead() as (leader, mortal)``: a new term, recovered. A leader that dies leaves all as it was."""

    @contextmanager
    def term(holder: str = "test", settings: RelaySettings = settings) -> Iterator[tuple[ExactlyOnceLeader, Mortal]]:
        with connected(database) as connection, closing(Mortal(broker.transactions(settings.transactions))) as mortal:
            lease = take(connection, settings.name, holder, settings.lease_s)
            assert lease is not None
            identity = recover(connection, mortal, lease, settings, lambda: None)
            with open_engine(database, lease, settings) as engine:
                yield ExactlyOnceLeader(connection, engine, mortal, lease, settings, identity), mortal

    return term


def seen(broker: Broker, topic: str, count: int) -> dict[str, list[Any]]:
    """What a new group reads of a topic by key; fails if it is not ``count``."""
    consumer = broker.consumer(f"g{uuid.uuid4().hex[:12]}", [topic], earliest)
    found = by_key(collect(consumer, count))
    assert list(consumer.poll(10, 1.0)) == []
    consumer.close()
    return found


def place(producer: psycopg.Connection[Any], *streams: str, count: int = 1) -> None:
    for stream in streams:
        append(producer, stream, [event() for _ in range(count)])


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_a_leader_that_dies_around_the_brokers_commit_loses_and_doubles_nothing(
    producer, broker, settings, lead, moment
) -> None:
    place(producer, "order-1", "order-2", count=15)
    for _ in range(3):
        with lead() as (leader, mortal), pytest.raises(Died):
            setattr(mortal, moment, True)
            drain(leader)
    with lead() as (leader, _):
        drain(leader)
    assert {k: len(v) for k, v in seen(broker, f"{settings.prefix}.order", 30).items()} == {
        "order-1": 15,
        "order-2": 15,
    }


def test_what_postgres_is_told_after_a_crash_is_what_it_would_have_been_told(producer, broker, settings, lead) -> None:
    place(producer, "order-1", count=5)
    published = 'SELECT topic, partition, "offset" FROM outbox.published'
    with lead() as (leader, mortal), pytest.raises(Died):
        mortal.behind = True
        leader.step()
    assert producer.execute(published).fetchall() == []
    with lead():
        ((topic, partition, offset),) = producer.execute(published).fetchall()
    (found,) = {(d.topic, d.partition): d.offset for d in collect(broker.consumer("g", [topic], earliest), 5)}.items()
    assert found == ((topic, partition), offset)
    assert producer.execute("SELECT step FROM outbox.relay_cursor").fetchall() == [(1,)]


def test_a_refused_row_and_what_waits_behind_it_are_parked_though_the_leader_died(
    producer, broker, settings, lead
) -> None:
    topic = f"{settings.prefix}.plain"
    for key, payload in (("a", b"1"), ("a", LARGE), ("a", b"2"), ("b", b"1"), ("a", b"3"), ("b", b"2")):
        send(producer, topic, key, payload)
    with lead() as (leader, mortal), pytest.raises(Died):
        mortal.behind = True
        leader.step()
    assert parked(producer) == []
    with lead() as (leader, _):
        waiting = [(p.key, p.reason == BEHIND) for p in parked(producer)]
        assert waiting == [("a", False), ("a", True), ("a", True)]
        send(producer, topic, "a", b"4")
        drain(leader)
        assert seen(broker, topic, 3) == {"a": [b"1"], "b": [b"1", b"2"]}
        discard(producer, topic, "a", seq=parked(producer)[0].seq)
        until(lambda: leader.step() == 0 and not parked(producer))
    assert seen(broker, topic, 6)["a"] == [b"1", b"2", b"3", b"4"]


def test_parked_rows_published_at_last_are_published_once_though_the_leader_died(
    producer, broker, settings, lead, monkeypatch
) -> None:
    topic = f"{settings.prefix}.plain"
    for payload in (LARGE, b"1", b"2"):
        send(producer, topic, "a", payload)
    with lead() as (leader, _):
        drain(leader)
    discard(producer, topic, "a", seq=parked(producer)[0].seq)
    with lead() as (leader, mortal), pytest.raises(Died):
        mortal.behind = True
        step_until(leader, lambda: False)
    assert len(parked(producer)) == 2
    with lead() as (leader, _):
        assert parked(producer) == []
        send(producer, topic, "a", b"3")
        drain(leader)
    assert seen(broker, topic, 3) == {"a": [b"1", b"2", b"3"]}


def test_a_row_refused_once_more_waits_and_those_before_it_go_out_once(producer, broker, settings, lead) -> None:
    topic = f"{settings.prefix}.plain"
    for payload in (LARGE, b"1", LARGE, b"2"):
        send(producer, topic, "a", payload)
    with lead() as (leader, _):
        drain(leader)
        discard(producer, topic, "a", seq=parked(producer)[0].seq)
        step_until(leader, lambda: len(parked(producer)) == 2)
        assert retry(producer, topic, "a") == 2
        step_until(leader, lambda: not parked(producer)[0].retry)
    assert [p.reason == BEHIND for p in parked(producer)] == [False, True]
    assert seen(broker, topic, 1) == {"a": [b"1"]}


def test_a_leader_that_was_replaced_publishes_nothing_and_writes_nothing(producer, broker, settings, lead) -> None:
    place(producer, "order-1", count=30)
    with lead() as (old, _):
        old.step()
        with lead() as (new, _):  # the same holder: takes its own lease
            with pytest.raises((Fenced, BrokerUnavailable)):
                old.step()
            drain(new)
    assert len(seen(broker, f"{settings.prefix}.order", 30)["order-1"]) == 30


def test_a_late_one_that_fences_the_leader_writes_nothing_and_the_leader_comes_back(
    producer, broker, settings, lead, database
) -> None:
    place(producer, "order-1", count=30)
    with connected(database) as paused:
        lease = take(paused, settings.name, "late", settings.lease_s)
        lease.release(paused)
        with lead() as (leader, _):
            leader.step()
            with closing(broker.transactions(settings.transactions)) as late, pytest.raises(Fenced):
                recover(paused, late, lease, settings, lambda: None)
            with pytest.raises((Fenced, BrokerUnavailable)):
                leader.step()
    with lead() as (leader, _):
        drain(leader)
    assert len(seen(broker, f"{settings.prefix}.order", 30)["order-1"]) == 30


def test_the_way_of_delivery_can_be_changed_back_and_forth(producer, broker, settings, lead, database) -> None:
    for _ in range(2):
        place(producer, "order-1", count=12)
        with lead() as (leader, _):
            drain(leader)
        place(producer, "order-1", count=12)
        with closing(broker.producer()) as plain, leading(database, plain, settings) as leader:
            drain(leader)
    with lead() as (leader, _):
        assert drain(leader) == 0
    assert len(seen(broker, f"{settings.prefix}.order", 48)["order-1"]) == 48


def test_the_cdc_engine_begins_where_the_last_note_says(producer, broker, settings, lead, database) -> None:
    from dataclasses import replace

    streaming = replace(settings, engine="cdc")
    with without_slots(database):
        with lead(settings=streaming) as (leader, _):
            place(producer, "order-1")
            step_until(leader, lambda: producer.execute("SELECT slot FROM outbox.relay_cursor").fetchone()[0])
            place(producer, "order-1", count=3)
            step_until(leader, lambda: producer.execute("SELECT max(step) FROM outbox.relay_cursor").fetchone()[0] > 1)
        for _ in range(2):
            place(producer, "order-1", count=5)
            with lead(settings=streaming) as (leader, mortal), pytest.raises(Died):
                mortal.behind = True
                step_until(leader, lambda: False)
        place(producer, "order-1", count=2)
        with lead(settings=streaming) as (leader, _):
            step_until(leader, lambda: _behind(producer))
    assert len(seen(broker, f"{settings.prefix}.order", 16)["order-1"]) == 16


def _behind(producer: psycopg.Connection[Any]) -> bool:
    query = "SELECT bool_and(pg_visible_in_snapshot(o.xid, c.a)) FROM outbox.outbox o, outbox.relay_cursor c"
    return bool(producer.execute(query).fetchone()[0])


def test_a_transaction_holds_as_much_as_four_pages(producer, settings, lead) -> None:
    place(producer, "order-1", count=100)
    with lead() as (leader, _):
        assert [leader.step() for _ in range(5)] == [10, 20, 40, 30, 0]


def test_a_postgres_that_went_back_behind_its_notes_halts(producer, settings, lead) -> None:
    place(producer, "order-1", count=60)
    with lead() as (leader, _):
        leader.step()
        producer.execute("CREATE TABLE kept AS SELECT * FROM outbox.relay_cursor")
        drain(leader)
    producer.execute("UPDATE outbox.relay_cursor c SET step = k.step, a = k.a, b = k.b, last = k.last FROM kept k")
    with pytest.raises(LogWentBack, match="reconcile"), lead():
        pass


def test_a_note_of_another_log_is_passed_by(producer, broker, settings, lead) -> None:
    place(producer, "order-1", count=3)
    with lead() as (leader, mortal), pytest.raises(Died):
        mortal.behind = True
        leader.step()
    producer.execute("UPDATE outbox.log_identity SET log_id = gen_random_uuid()")
    with lead() as (leader, _):
        assert drain(leader) == 3
    with lead() as (leader, _):
        assert drain(leader) == 0
    seen(broker, f"{settings.prefix}.order", 6)


def test_a_note_of_an_event_that_the_log_does_not_have_halts(producer, settings, lead) -> None:
    place(producer, "order-1", count=3)
    with lead() as (leader, mortal), pytest.raises(Died):
        mortal.behind = True
        leader.step()
    producer.execute("SET session_replication_role = replica")
    producer.execute("UPDATE outbox.event SET id = gen_random_uuid()")
    with pytest.raises(LogWentBack, match="reconcile"), lead():
        pass
