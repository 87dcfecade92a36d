"""What a session makes of offsets that jump. On the local broker: there one message can be taken from the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import pytest

from outbox.broker.local import LocalBroker
from outbox.broker.protocol import Range, TopicPartition
from outbox.database import connected
from outbox.errors import BrokerUnavailable, LogWentBack, MessagesLost
from outbox.log.identity import check_identity, halt
from projectors import horizon, ledger
from projectors.session import Session
from tests.integration.reading import Stage, assert_equal_to_model, put, settings_of, staged, until


def test_a_batch_behind_a_jump_is_not_passed_over_when_the_broker_cannot_be_asked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
    for n in range(3):
        stage.append("thing-1", put(b=n))
        stage.append(f"thing-2{n}", put(b=n))
    stage.side.write.relay().run(Flag(), drain=True)
    sql = "DELETE FROM outbox.broker_message WHERE \"offset\" = 2 AND key = 'thing-1' RETURNING 1"
    assert stage.connection.execute(sql).fetchall()
    asked, ranges = [], LocalBroker.ranges

    def once_away(self: LocalBroker, topics: list[str]) -> object:
        asked.append(1)
        if len(asked) == 2:  # the first is the session's beginning, the second the jump
            raise BrokerUnavailable("away")
        return ranges(self, topics)

    monkeypatch.setattr(horizon, "LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr(LocalBroker, "ranges", once_away)
    with stage.running():
        stage.wait_all()
    assert len(asked) >= 3
    assert_equal_to_model(stage)


@contextmanager
def stepping(stage: Stage) -> Iterator[Session]:
    """A session that takes a step when it is told to, with nothing left to read."""
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
    with ExitStack() as stack:
        session = Session(stage.side.plan("rows"), stage.side.stations("rows"), stage.serving(), Flag(), stack)
        while session.lag() or not session._consumer.assignment():
            session.step()
        yield session


def publish(stage: Stage, part: str) -> None:
    for n in range(20):
        stage.append(f"thing-{part}{n}", put(b=n))
    stage.side.write.relay().run(Flag(), drain=True)


def test_a_jump_over_messages_that_are_gone_ends_the_session_before_its_checkpoint(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "LOOK_EVERY_S", 3600.0)
    with stepping(stage) as session:
        publish(stage, "x")
        stage.connection.execute("TRUNCATE outbox.broker_message")
        publish(stage, "y")
        before = ledger.checkpoints(stage.connection, "rows", stage.serving())
        with pytest.raises(MessagesLost):
            until(session.step, "nothing was noticed", timeout_s=10.0)
        assert ledger.checkpoints(stage.connection, "rows", stage.serving()) == before
    with stage.running():
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_member_that_begins_while_others_go_on_does_not_take_the_topic_for_a_lost_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = LocalBroker.ranges

    def while_others_go_on(self: LocalBroker, topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
        found = ranges(self, topics)
        publish(stage, "x")
        others = {tp: range_.end for tp, range_ in ranges(self, topics).items()}
        ledger.save_checkpoints(stage.connection, "rows", stage.serving(), others)
        return found

    with stepping(stage), ExitStack() as stack:
        monkeypatch.setattr(LocalBroker, "ranges", while_others_go_on)
        monkeypatch.setattr(horizon.Horizon, "_fill", lambda *_: pytest.fail("reads the whole log"))
        Session(stage.side.plan("rows"), stage.side.stations("rows"), stage.serving(), Flag(), stack)


def test_members_that_write_the_same_checkpoints_wait_for_each_other_in_one_order(stage: Stage) -> None:
    with stepping(stage) as session:
        publish(stage, "x")
        while session.lag():
            session.step()
    generation = stage.serving()
    held = sorted(ledger.checkpoints(stage.connection, "rows", generation))
    ended: list[bool] = []

    def save() -> None:
        with connected(stage.side.write.dsn) as connection:
            ledger.save_checkpoints(connection, "rows", generation, dict.fromkeys(reversed(held), 10_000))
            ended.append(True)

    waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    saving = Thread(target=save)
    with connected(stage.side.write.dsn) as beginning:
        with beginning.transaction():  # as a session does that settles what it begins with
            for n, tp in enumerate(held):
                beginning.execute(horizon._ADOPT, ["rows", generation, *tp, 0, None])
                if n == 0:
                    saving.start()
                    until(lambda: stage.connection.execute(waits).fetchone() == (True,), "it waits")
        saving.join()
    assert len(held) > 1
    assert ended


def test_a_topic_that_gives_nothing_since_it_was_emptied_is_looked_at(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "LOOK_EVERY_S", 0.0)
    with stepping(stage) as session:
        session.look()
        publish(stage, "x")
        stage.connection.execute("TRUNCATE outbox.broker_message")
        with pytest.raises(MessagesLost):
            session.look()


def test_a_halt_ends_a_relay_that_leads_and_has_noticed_nothing(stage: Stage) -> None:
    ended: list[BaseException] = []

    def lead() -> None:
        try:
            stage.side.write.relay().run(stop)
        except LogWentBack as error:
            ended.append(error)

    stop = Flag()
    relay = Thread(target=lead)
    relay.start()
    try:
        until(lambda: ledger.is_relayed(stage.connection), "it leads")
        halt(stage.connection, "somebody knows better")
        until(lambda: ended, "it ends", timeout_s=15.0)
    finally:
        stop.set()
        relay.join()
    assert "somebody knows better" in str(ended[0])


def test_the_newest_event_of_a_store_may_be_erased_by_law(
    database: str, address: Callable[[str], str], tmp_path: Path
) -> None:
    settings = settings_of("local", database, address, data_dir=tmp_path)
    with staged(settings) as stage, stage.running():
        stage.append("thing-1", put(a=1))
        stage.append("thing-2", put(a=1))
        stage.wait_all()
    assert list((tmp_path / "witness").glob("*.json"))
    with staged(settings) as stage:
        with stage.connection.transaction():
            stage.connection.execute("SET LOCAL outbox.erasure = 'on'")
            stage.connection.execute("DELETE FROM outbox.event WHERE stream = 'thing-2'")
        with stage.running():
            stage.append("thing-1", put(a=2))
            stage.wait_all()
        assert check_identity(stage.connection).halted is None
