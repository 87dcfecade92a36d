"""The cdc engine: what becomes of its slot loses nothing, and what it cannot have is told in one line."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import psycopg
import pytest

from deploy.local.local import Local
from outbox.database import connected
from outbox.errors import DatabaseError, SettingsError
from outbox.log.append import append
from outbox.log.migrate import migrate
from outbox.relay import slot as slotting
from outbox.relay.replication import Replication
from tests.integration.appending import event
from tests.integration.streaming import CDC, POLL, confirmed, dsn, producer, published, recorder, streaming, written  # noqa: F401
from tests.relaying import (
    STREAMING,
    Recorder,
    drain,
    drop_slots,
    leading,
    relaying,
    slots,
    until,
)

EAGER = replace(CDC, lease_s=0.6, retry_s=0.01)
"""Of a relay that tries again at once."""

# ---------------------------------------------------------- the lost slot


def test_a_slot_that_is_gone_is_bridged_and_made_anew(dsn, producer, recorder):
    for round_ in range(3):
        with leading(dsn, recorder, CDC) as leader:
            streaming(leader)
            append(producer, "order-1", [event() for _ in range(5)])
            published(leader, recorder, round_ * 10 + 5)
        assert drop_slots(producer) == 1
        append(producer, "order-1", [event() for _ in range(5)])
    with leading(dsn, recorder, CDC) as leader:
        published(leader, recorder, 30)
    assert recorder.versions("order-1") == list(range(1, 31)), "in order, and nothing twice"


def test_only_who_streams_from_a_slot_is_ended_for_it(dsn, producer):
    """Whoever drops a slot by hand has it in use for a moment, as whoever makes one by hand has here."""
    with connected(dsn) as writer, connected(dsn) as operator:
        writer.execute("BEGIN")
        writer.execute("SELECT pg_current_xact_id()")  # the making of a slot waits for it
        make = "SELECT pg_create_logical_replication_slot('made_by_hand', 'pgoutput')"
        making = threading.Thread(target=operator.execute, args=[make])
        making.start()
        held = "SELECT FROM pg_replication_slots WHERE slot_name = 'made_by_hand' AND active_pid = %s"
        until(lambda: producer.execute(held, [operator.info.backend_pid]).fetchone() is not None)
        slotting.release(producer, "made_by_hand")
        writer.execute("COMMIT")
        making.join()
        assert operator.execute("SELECT 1").fetchone() == (1,)
        assert drop_slots(producer) == 1


def test_a_slot_that_has_lost_its_log_is_bridged_and_made_anew(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 1)
        lost = slots(producer)
    append(producer, "order-1", event())
    producer.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    producer.execute("SELECT pg_reload_conf()")
    try:
        status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"

        def is_lost():
            producer.execute("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(true, '', 'x')) m")
            producer.execute("CHECKPOINT")
            return producer.execute(status, lost).fetchone()[0] == "lost"

        until(is_lost, 60)
    finally:
        producer.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        producer.execute("SELECT pg_reload_conf()")
    with leading(dsn, recorder, CDC) as leader:
        append(producer, "order-1", event())
        published(leader, recorder, 3)
        streaming(leader)
        assert not set(slots(producer)) & set(lost)
    assert recorder.versions("order-1") == [1, 2, 3]


def test_while_a_slot_cannot_be_made_yet_the_relay_polls_and_the_join_leaves_no_gap(dsn, producer, recorder):
    with psycopg.connect(dsn) as slow, leading(dsn, recorder, CDC) as leader:
        append(slow, "slow-1", event())
        append(producer, "order-1", [event() for _ in range(100)])
        published(leader, recorder, 100)
        assert not leader._engine.engine._streaming, "a slot waits for every open transaction"
        slow.commit()
        streaming(leader)
        append(producer, "order-1", event())
        published(leader, recorder, 102)
    assert recorder.versions("order-1") == list(range(1, 102))
    assert recorder.versions("slow-1") == [1]


def test_a_crash_while_bridging_loses_nothing_and_leaves_one_slot(dsn, producer, recorder):
    """Whether the new slot is not written down yet, or its window is published in part."""
    total = 0
    for steps in range(12):
        drop_slots(producer)
        append(producer, "order-1", [event() for _ in range(25)])
        total += 25
        with leading(dsn, recorder, CDC) as leader:
            for _ in range(steps):
                leader.step()
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        published(leader, recorder, total)
        assert len(slots(producer)) == 1
    assert recorder.versions("order-1") == list(range(1, total + 1))


def test_a_slot_made_but_not_written_down_is_dropped_by_the_next_leader(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        leader._engine.read(leader._cursor, 10)
        until(lambda: leader._engine.engine._replication.made())
        (orphan,) = slots(producer)
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
        assert orphan not in slots(producer)
        assert len(slots(producer)) == 1


def test_an_old_leader_leaves_the_slot_of_a_newer_one_alone(dsn, producer, recorder):
    with leading(dsn, recorder, CDC) as leader:
        streaming(leader)
    with connected(dsn) as connection:
        (newer,) = slots(producer)
        slotting.drop_older(connection, "relay", epoch=1)
        assert slots(producer) == [newer]
        slotting.drop_older(connection, "relay", epoch=2, keep=newer)
        assert slots(producer) == [newer]
        slotting.drop_older(connection, "relay", epoch=2)
        assert slots(producer) == []


def test_relays_of_several_names_have_slots_of_their_own(dsn, producer):
    one, other = Recorder(), Recorder()
    with leading(dsn, one, CDC) as first, leading(dsn, other, replace(CDC, name="Relay 2!")) as second:
        streaming(first), streaming(second)
        append(producer, "order-1", event())
        published(first, one, 1), published(second, other, 1)
        assert len(slots(producer)) == 2
    with leading(dsn, one, POLL):
        assert len(slots(producer)) == 1, "the poll engine drops the slots of its own name only"


# ------------------------------------------------- refusals and warnings


def test_a_server_that_does_not_write_its_log_logically_is_told_in_one_line_and_can_be_polled():
    with Local(settings={"postgres": {"wal_level": "replica", "fsync": "off"}}) as local:
        (server,) = local.start("postgres")
        with connected(server.address) as connection:
            migrate(connection)
            append(connection, "order-1", event())
        with pytest.raises(SettingsError, match="wal_level = replica: set wal_level = logical"):
            with leading(server.address, Recorder(), CDC):
                pass
        recorder = Recorder()
        with leading(server.address, recorder, POLL) as leader:
            drain(leader)
        assert recorder.versions("order-1") == [1]


def test_while_the_server_has_no_slot_to_give_the_relay_polls_and_asks_again(dsn, producer, recorder, monkeypatch):
    monkeypatch.setattr("outbox.relay.cdc.MAKE_AGAIN_S", 0.05)
    taken = []
    try:
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            for n in range(1_000):
                name = f"{producer.info.dbname}_{n}"
                producer.execute("SELECT pg_create_physical_replication_slot(%s)", [name])
                taken.append(name)
        with leading(dsn, recorder, CDC) as leader:
            for n in range(10):
                append(producer, "order-1", event())
                published(leader, recorder, n + 1)
            assert not leader._engine.engine._streaming
            producer.execute("SELECT pg_drop_replication_slot(%s)", [taken.pop()])
            streaming(leader)
            append(producer, "order-1", event())
            published(leader, recorder, 11)
    finally:
        for name in taken:
            producer.execute("SELECT pg_drop_replication_slot(%s)", [name])
    assert recorder.versions("order-1") == list(range(1, 12))


def test_a_role_that_may_not_replicate_is_told_what_to_do(dsn, producer):
    role = f"plain_{producer.info.dbname}"
    producer.execute(f"CREATE ROLE {role} LOGIN")
    try:
        producer.execute(f"GRANT ALL ON SCHEMA outbox TO {role}")
        producer.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA outbox TO {role}")
        from urllib.parse import urlsplit

        parts = urlsplit(dsn)
        theirs = parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}").geturl()
        with pytest.raises(SettingsError, match=r"may not replicate: ALTER ROLE \.\.\. REPLICATION"):
            with leading(theirs, Recorder(), CDC):
                pass
    finally:
        producer.execute(f"DROP OWNED BY {role}")
        producer.execute(f"DROP ROLE {role}")


def test_a_publication_that_somebody_dropped_is_named(dsn, producer):
    producer.execute("DROP PUBLICATION outbox_relay")
    with pytest.raises(DatabaseError, match=r"CREATE PUBLICATION outbox_relay FOR TABLE outbox\.event, outbox\.outbox"):
        with leading(dsn, Recorder(), CDC):
            pass


def test_a_slot_that_keeps_too_much_of_the_log_is_warned_of_once_and_measured(
    dsn, producer, recorder, capsys, monkeypatch
):
    monkeypatch.setattr("outbox.relay.cdc.WATCH_EVERY_S", 0)
    with leading(dsn, recorder, replace(CDC, slot_wal_warn_bytes=1 << 20, lease_s=3600)) as leader:
        streaming(leader)
        leader.step()
        assert "keeps much" not in capsys.readouterr().out
        with psycopg.connect(dsn) as slow:  # the slot cannot let go of what an open transaction began with
            slow.execute("SELECT pg_logical_emit_message(true, '', 'x')")
            producer.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 3 << 20))")
            for _ in range(5):
                leader.step()
    assert capsys.readouterr().out.count("keeps much of the write-ahead log") == 1
    assert slotting.SLOT_WAL_BYTES._value.get() > 1 << 20


def test_a_relay_whose_slot_is_dropped_under_it_makes_another_and_goes_on(dsn, producer, recorder):
    with relaying(dsn, recorder, EAGER):
        for round_ in range(3):
            until(lambda: producer.execute(STREAMING).fetchone())
            append(producer, "order-1", event())
            until(lambda round_=round_: len(recorder.messages) > round_)
            until(lambda: drop_slots(producer) == 1)
    assert recorder.versions("order-1") == [1, 2, 3]


def test_a_slot_that_the_server_cannot_decode_is_dropped_and_made_anew(dsn, producer, recorder, monkeypatch):
    """PostgreSQL's own fault, which cannot be caused at will: every stream from this one slot ends with it."""
    start, receive, broken = Replication.start, Replication.receive, []

    def started(replication, slot, *given):
        start(replication, slot, *given)
        broken[:1] = broken[:1] or [slot]
        replication.slot_of_test = slot

    def received(replication):
        if replication.slot_of_test in broken:
            raise psycopg.errors.InternalError_('could not map filenumber "base/1/2" to relation OID')
        return receive(replication)

    monkeypatch.setattr(Replication, "start", started)
    monkeypatch.setattr(Replication, "receive", received)
    with relaying(dsn, recorder, EAGER):
        append(producer, "order-1", [event() for _ in range(3)])
        until(lambda: broken and slots(producer) and not set(slots(producer)) & set(broken))
        append(producer, "order-1", [event() for _ in range(3)])
        until(lambda: len(recorder.messages) >= 6)
    assert recorder.versions("order-1") == [1, 2, 3, 4, 5, 6]


def test_a_slot_is_not_waited_for_when_the_relay_stops(dsn, producer):
    """A transaction that stays open holds up the making of a slot, not the end of the process."""
    with psycopg.connect(dsn) as slow, connected(dsn) as connection:
        slow.execute("SELECT pg_current_xact_id()")
        replication = Replication(dsn, connection)
        replication.make_slot("outbox_test_" + producer.info.dbname[-12:])
        until(lambda: slots(producer))
        assert replication.made() is None
        begun = time.monotonic()
        replication.close()
        assert time.monotonic() - begun < 5
        until(lambda: slots(producer) == [])
