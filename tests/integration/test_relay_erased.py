"""Events that are erased by law before the relay has published them: it passes them by, wherever they are."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from outbox.broker import LocalBroker, TopicPartition
from outbox.log.append import append, send
from outbox.log.identity import check_identity
from outbox.relay.cursor import Cursor, Snapshot
from outbox.relay.exactly_once import recover
from outbox.relay.horizon import Horizon
from outbox.relay.lease import take
from outbox.relay.note import Note
from outbox.relay.parking import parked
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import drain, leading, until

SMALL = RelaySettings(page_min=10, page_max=10)


def erase(connection, stream, below=1_000):
    with connection.transaction():
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        connection.execute("DELETE FROM outbox.event WHERE stream = %s AND version < %s", [stream, below])


def test_an_event_erased_before_it_was_published_is_passed_by(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(3)])
    append(producer, "order-2", event())
    send(producer, "plain", "order-1", b"")
    erase(producer, "order-1")
    with leading(database, recorder, SMALL) as leader:
        drain(leader)
        append(producer, "order-1", event())
        drain(leader)
    assert [(m.topic, m.key) for m in recorder.messages] == [
        ("outbox.order", "order-2"),
        ("plain", "order-1"),
        ("outbox.order", "order-1"),
    ]


@pytest.mark.parametrize("erased", [9, 10, 20, 25])
def test_pages_of_nothing_but_erased_events_are_no_end(database, producer, recorder, erased):
    append(producer, "order-1", [event() for _ in range(erased)])
    append(producer, "order-2", [event() for _ in range(15)])
    erase(producer, "order-1")
    with leading(database, recorder, SMALL) as leader:
        drain(leader)
    assert recorder.versions("order-2") == list(range(1, 16))


def test_a_parked_key_whose_events_are_erased_is_free_again(database, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_EVERY_S", 0.0)
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_SHARE", 0)
    recorder.refuse = {"order-1", "order-2"}
    append(producer, "order-1", [event() for _ in range(3)])
    append(producer, "order-2", [event() for _ in range(3)])
    with leading(database, recorder, SMALL) as leader:
        drain(leader)
        erase(producer, "order-1")
        erase(producer, "order-2", below=2)
        recorder.refuse = set()
        until(lambda: leader.step() == 0 and not parked(producer))
        append(producer, "order-1", event())
        drain(leader)
    assert recorder.versions("order-2") == [2, 3]
    assert recorder.versions("order-1") == [1]


def note_of(connection, parked):
    """What a leader that died behind the broker's commit of its first page has left there."""
    identity = check_identity(connection)
    (here,) = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
    cursor = Cursor(Snapshot(here), Snapshot(here))
    place = {TopicPartition("outbox.order", 0): 0}
    return Note(str(identity.log_id), identity.timeline_now, 1, cursor, place, parked)


def recover_behind_an_erasure(database, connection, note):
    """A leader dies behind the broker's commit, what its note speaks of is erased, and the next leader recovers."""
    settings = RelaySettings(delivery="exactly_once")
    lease = take(connection, settings.name, "test", 60.0)
    with closing(LocalBroker(database)) as broker:
        with closing(broker.transactions(settings.transactions)) as dead:
            recover(connection, dead, lease, settings, lambda: None)
            written = note().encode()
            dead.publish([], lambda places: written)
        erase(connection, "order-1")
        with closing(broker.transactions(settings.transactions)) as successor:
            recover(connection, successor, lease, settings, lambda: None)


def test_a_row_to_park_by_the_brokers_note_may_be_erased_meanwhile(database, producer):
    append(producer, "order-1", event())
    (seq,) = producer.execute("SELECT seq FROM outbox.outbox").fetchone()
    recover_behind_an_erasure(database, producer, lambda: note_of(producer, parked=[(seq, "too large")]))
    assert parked(producer) == []
    assert producer.execute("SELECT step FROM outbox.relay_cursor").fetchone() == (1,)


def test_an_event_erased_before_the_map_had_it_is_none_that_the_log_lost(database, producer, recorder):
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        drain(leader)
    producer.execute("DELETE FROM outbox.published")  # the relay was killed between the broker and the map
    erase(producer, "order-1")
    Horizon(producer, recorder, "outbox").check_log()
    Horizon(producer, recorder, "outbox").check_topics({"outbox.order"})
    assert check_identity(producer).halted is None


def test_an_event_that_is_in_the_brokers_note_may_be_erased_meanwhile(database, producer):
    append(producer, "order-1", event())
    (id_,) = producer.execute("SELECT id::text FROM outbox.event").fetchone()
    recover_behind_an_erasure(database, producer, lambda: replace(note_of(producer, parked=[]), events=[id_]))
    assert producer.execute("SELECT step FROM outbox.relay_cursor").fetchone() == (1,)
