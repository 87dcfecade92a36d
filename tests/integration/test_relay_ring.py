"""The outbox shrinks back, and never by a row that is not published."""

from __future__ import annotations

import re

import psycopg
import pytest

from outbox.database import connected
from outbox.errors import Fenced, RelayInUse
from outbox.log.append import append, send
from outbox.relay.forget import forget
from outbox.relay.parking import discard
from outbox.relay.ring import PART_ROWS, PARTS, trim
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, drain, leading


def go_to(connection, part):
    """Have the next row fall into this part of the ring (rising: parts are gone through once a round)."""
    connection.execute("SELECT setval('outbox.outbox_seq', %s, false)", [max(part * PART_ROWS, 1)])


def sizes(connection):
    return [
        connection.execute("SELECT pg_relation_size(%s::regclass)", [f"outbox.outbox_{n}"]).fetchone()[0]
        for n in range(PARTS)
    ]


def publish(database, recorder=None, **settings):
    recorder = recorder or Recorder()
    with leading(database, recorder, RelaySettings(**settings)) as leader:
        drain(leader)
        leader._advance(leader._cursor, {})
    return recorder


def test_constants_are_those_of_the_sql(producer):
    key, count = producer.execute(
        "SELECT pg_get_partkeydef('outbox.outbox'::regclass), count(*) FROM pg_inherits"
        " WHERE inhparent = 'outbox.outbox'::regclass"
    ).fetchone()
    assert re.findall(r"\d+", key) == [str(PART_ROWS), str(PARTS)]
    assert count == PARTS


def test_a_part_whose_rows_are_published_is_emptied(database, producer):
    append(producer, "order-1", [event() for _ in range(10)])
    go_to(producer, 1)
    append(producer, "order-1", event())
    publish(database)
    assert trim(producer) == (1, 0)
    assert [n for n, size in enumerate(sizes(producer)) if size] == [1], "the producers' current part is left alone"


def test_a_part_with_a_row_that_is_not_published_is_kept(database, producer):
    publish(database)
    append(producer, "order-1", event())
    go_to(producer, 1)
    assert trim(producer) == (0, 1)
    assert publish(database).versions("order-1") == [1]
    assert trim(producer) == (1, 0)


def test_a_part_with_a_row_of_an_open_transaction_is_kept_and_nobody_waits(database, producer):
    with psycopg.connect(database) as slow:
        append(slow, "slow-1", event())
        append(producer, "order-1", event())
        go_to(producer, 1)
        publish(database)
        producer.execute("SET lock_timeout = '1ms'")
        assert trim(producer) == (0, 1)
        slow.commit()
    assert trim(producer) == (0, 1), "committed, not published"
    assert publish(database).versions("slow-1") == [1]
    assert trim(producer) == (1, 0)


def test_a_part_is_kept_until_every_relay_is_done_with_it(database, producer):
    publish(database, name="late")
    append(producer, "order-1", event())
    go_to(producer, 1)
    publish(database, name="early")
    assert trim(producer) == (0, 1)
    assert publish(database, name="late").versions("order-1") == [1]
    assert trim(producer) == (1, 0)


def test_the_outbox_is_not_kept_for_a_relay_that_was_forgotten(database, producer):
    append(producer, "order-1", event())
    go_to(producer, 1)
    refusing = Recorder()
    refusing.refuse = {"order-2"}
    publish(database, refusing, name="old")
    append(producer, "order-2", event())
    publish(database, name="new")
    with pytest.raises(RelayInUse, match="led by test: stop it first"):
        forget(producer, "old")
    producer.execute("UPDATE outbox.lease SET expires_at = '-infinity'")
    with pytest.raises(RelayInUse, match="no relay 'odl' is known: 'new', 'old'"):
        forget(producer, "odl")
    go_to(producer, 2)
    assert trim(producer) == (1, 1)
    with leading(database, refusing, RelaySettings(name="old")) as paused:
        producer.execute("UPDATE outbox.lease SET expires_at = '-infinity'")
        forget(producer, "old")
        with pytest.raises(Fenced):
            drain(paused)
    assert trim(producer) == (1, 0)


def test_a_relay_with_rows_parked_is_not_forgotten(database, producer):
    refusing = Recorder()
    refusing.refuse = {"k"}
    send(producer, "t", "k", b"payload")
    publish(database, refusing, name="old")
    producer.execute("UPDATE outbox.lease SET expires_at = '-infinity'")
    with pytest.raises(RelayInUse, match="has 1 parked row"):
        forget(producer, "old")
    assert discard(producer, "t", "k", relay="old") == 1
    forget(producer, "old")
    assert producer.execute("SELECT name FROM outbox.relay_cursor").fetchall() == []


def test_rows_that_wait_parked_do_not_hold_the_ring(database, producer):
    send(producer, "t", "k", b"payload")
    go_to(producer, 1)
    recorder = Recorder()
    recorder.refuse = {"k"}
    publish(database, recorder)
    assert trim(producer) == (1, 0)
    assert producer.execute("SELECT payload FROM outbox.parked").fetchall() == [(b"payload",)]


def test_when_the_ring_goes_round_nothing_is_overwritten_and_it_shrinks_back(database, producer):
    for round_ in range(2 * PARTS):
        go_to(producer, round_)
        append(producer, "order-1", event(), expected=round_)
    go_to(producer, 2 * PARTS + 3)
    recorder = publish(database)
    assert recorder.versions("order-1") == list(range(1, 2 * PARTS + 1))
    assert trim(producer) == (PARTS - 1, 0)
    go_to(producer, 2 * PARTS + 4)
    assert trim(producer) == (1, 0)
    assert sum(sizes(producer)) == 0


def test_a_leader_trims_by_itself_and_tries_again_what_was_in_use(database, producer, monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.TRIM_EVERY_S", 0)
    append(producer, "order-1", event())
    go_to(producer, 1)
    with psycopg.connect(database) as reader, leading(database, Recorder()) as leader:
        reader.execute("SELECT count(*) FROM outbox.outbox")  # holds its locks
        drain(leader)
        assert sizes(producer)[0] > 0
        reader.rollback()
        drain(leader)
        assert sizes(producer)[0] == 0


def test_the_real_thing_a_burst_of_more_than_a_part_leaves_no_more_than_a_part(database, producer):
    with producer.transaction():
        producer.execute(
            "INSERT INTO outbox.outbox (topic, key) SELECT 't', 'k' FROM generate_series(1, %s)", [PART_ROWS + 1_000]
        )
    recorder = Recorder()
    with leading(database, recorder, RelaySettings(page_min=20_000, page_max=20_000)) as leader:
        drain(leader)
    assert len(recorder.messages) == PART_ROWS + 1_000
    with connected(database) as connection:
        assert connection.execute("SELECT count(*) < %s FROM outbox.outbox", [PART_ROWS]).fetchone() == (True,)
