"""A database of any earlier step, with all that can stand in it, goes on after `outbox migrate`: nothing is lost, said
twice or begun anew."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from outbox.backup import backup, restore
from outbox.codec import default_registry
from outbox.database import check_migrated, connected
from outbox.errors import DatabaseError
from outbox.log.append import append, send
from outbox.log.migrate import FOLDER, migrate, migrations
from outbox.relay.parking import parked, retry
from outbox.relay.settings import RelaySettings
from projectors import ledger, placement
from tests.capturing import captured
from tests.integration.appending import event
from tests.relaying import Recorder, drain, leading, without_slots

NEWEST = migrations()[-1].number
WITH_READ_SIDE, WITH_CAPTURE, WITH_STORES = 4, 7, 12
DATA = default_registry().encode("entity.patched", {"properties": {"a": 1}})
EXACT = "SELECT position, stream, version, type, id, data, meta::text, at FROM outbox.event ORDER BY position"
"""What `append` wrote when there was only the table."""
_EVENT = """
WITH e AS (
    INSERT INTO outbox.event (stream, version, type, id, data) VALUES (%s, %s, 'entity.patched', %s, %s)
    RETURNING position
) INSERT INTO outbox.outbox (position) SELECT position FROM e
"""


@pytest.fixture
def old(tmp_path, empty_database):
    """``old(step)``: a database in which the migrations up to that one were run."""

    def make(step: int) -> str:
        for path in sorted(FOLDER.glob("[0-9]*.sql"))[:step]:
            shutil.copy(path, tmp_path)
        with connected(empty_database) as connection:
            migrate(connection, tmp_path)
        return empty_database

    return make


def write(connection, stream, *versions):
    for version in versions:
        connection.execute(_EVENT, [stream, version, uuid.uuid4(), DATA])


def fill(connection, step):
    """thing-1: published, then more that is not; thing-2: parked; a message; with a read side: parked there as well."""
    write(connection, "thing-1", 1, 2)
    write(connection, "thing-2", 1)
    connection.execute(
        "INSERT INTO outbox.parked (relay, topic, key, seq, position, reason)"
        " SELECT 'relay', 'outbox.thing', 'thing-2', seq, position, 'too large' FROM outbox.outbox WHERE seq = 3"
    )
    connection.execute(
        "INSERT INTO outbox.relay_cursor (name, epoch, a, b, last)"
        " SELECT 'relay', 3, s, s, 3 FROM pg_current_snapshot() s"
    )
    connection.execute("INSERT INTO outbox.lease VALUES ('relay', 'gone', 3, '-infinity')")
    write(connection, "thing-2", 2)
    write(connection, "thing-1", 3)
    connection.execute(
        "INSERT INTO outbox.outbox (topic, key, headers, payload) VALUES ('news', 'k', '{\"a\": \"b\"}', 'hello')"
    )
    if step >= WITH_READ_SIDE:
        connection.execute("INSERT INTO outbox.generation (projector, generation, state) VALUES ('p', 'g1', 'serving')")
        connection.execute("INSERT INTO outbox.checkpoint VALUES ('p', 'g1', 'outbox.thing', 0, 2)")
        connection.execute(
            "INSERT INTO outbox.dead_letter (projector, generation, stream, version, type, error)"
            " VALUES ('p', 'g1', 'thing-9', 1, 'entity.patched', 'odd')"
        )


@pytest.mark.parametrize("engine", ["poll", "cdc"])
@pytest.mark.parametrize("step", range(1, NEWEST))
def test_the_relay_goes_on_where_it_stood_and_so_do_producers(step, engine, old, monkeypatch):
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_EVERY_S", 0)
    monkeypatch.setattr("outbox.relay.leader.REDRIVE_SHARE", 0)
    recorder, settings = Recorder(), RelaySettings(engine=engine)
    with without_slots(old(step)) as dsn, connected(dsn) as connection:
        fill(connection, step)
        assert [m.number for m in migrate(connection)] == list(range(step + 1, NEWEST + 1))
        check_migrated(connection)
        assert append(connection, "thing-1", [event(), event()], expected=3).version == 5
        assert append(connection, "thing-3", event(), expected="none").version == 1
        send(connection, "news", "k", b"again")
        with leading(dsn, recorder, settings) as leader:
            drain(leader)
            assert recorder.versions("thing-1") == [3, 4, 5]
            assert recorder.versions("thing-3") == [1]
            assert [m.value for m in recorder.messages if m.topic == "news"] == [b"hello", b"again"]
            assert recorder.versions("thing-2") == []
            assert retry(connection, "outbox.thing", "thing-2") == 2
            drain(leader)
        assert recorder.versions("thing-2") == [1, 2]
        assert parked(connection) == []


@pytest.mark.parametrize("step", range(1, NEWEST))
def test_the_log_can_be_backed_up_and_restored(step, old, new_database, tmp_path: Path):
    with connected(old(step)) as connection:
        fill(connection, step)
        migrate(connection)
        backup(connection, tmp_path / "backup", default_registry())
        written = connection.execute(EXACT).fetchall()
        assert len(written) == 5
        if step >= WITH_READ_SIDE:
            assert ledger.checkpoints(connection, "p", "g1")
            assert [d.stream for d in ledger.dead_letters(connection, "p")] == ["thing-9"]
    with connected(new_database()) as other:
        restore(other, tmp_path / "backup")
        assert other.execute(EXACT).fetchall() == written


@pytest.mark.parametrize("step", range(WITH_CAPTURE, NEWEST))
def test_a_capture_goes_on_from_its_position(step, old, monkeypatch):
    with captured(old(step)) as one:
        one.db.execute("CREATE TABLE t (id int PRIMARY KEY)")
        one.db.execute("INSERT INTO t VALUES (1)")
        with monkeypatch.context() as patched:
            patched.setattr("outbox.capture.capture.check_migrated", lambda connection: None)
            one.add("t")
            one.drain()
            before = one.one("SELECT slot FROM outbox.capture")
            one.db.execute("INSERT INTO t VALUES (2)")
        with connected(one.dsn) as connection:
            migrate(connection)
        one.drain()
        assert one.equal("t")
        assert one.one("SELECT slot FROM outbox.capture") == before
        assert len(one.events()) == 2


@pytest.mark.parametrize("step", range(1, NEWEST))
def test_a_database_that_was_not_brought_up_to_date_is_called_that(step, old):
    with connected(old(step)) as connection:
        with pytest.raises(DatabaseError, match="run `outbox migrate` first"):
            check_migrated(connection)


@pytest.mark.parametrize(("said", "store"), [("1 second", "chroma"), ("-1 second", None), (None, None)])
@pytest.mark.parametrize("step", range(WITH_READ_SIDE, WITH_STORES))
def test_a_generation_is_where_its_projector_was_at_work_since(step, said, store, old):
    """Or that is not known: a projector that spoke before may have been at work on another generation, elsewhere."""
    with connected(dsn := old(step)) as connection:
        fill(connection, step)
        if said is not None:
            connection.execute(
                "INSERT INTO outbox.projector (projector, store, health, at)"
                " SELECT 'p', 'chroma', 'ok', changed_at + %s::interval FROM outbox.generation",
                [said],
            )
        with pytest.raises(DatabaseError, match="run `outbox migrate` first"), connected(dsn) as asking:
            placement.serving(asking, ["p"])
        migrate(connection)
        assert placement.serving(connection, ["p"]) == {"p": placement.Place("g1", store)}
