"""What a session does with the batch in hand while it looks ahead: the states it folds on, and whose messages they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event as Flag
from typing import Any

import pytest

from outbox.broker.protocol import Delivery, TopicPartition
from outbox.errors import BrokerUnavailable, RecordsRefused, StoreUnavailable
from projectors import ledger, operations
from projectors.late import Late
from projectors.pipeline import Pipeline, Ready
from projectors.record import Change
from projectors.resilience import Resilience
from projectors.session import Session
from projectors.sinks.postgres import PostgresSink
from tests.integration.reading import PATIENCE_S, Stage, assert_equal_to_model, bad, put, settings_of, staged, until

STREAMS = 7
TAKEN = 10
"""Messages of a batch; half of them are a backlog."""
BEGINS_WITHIN_S = 5.0


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    with staged(settings_of("local", database, address)) as stage:
        with stage.running():
            stage.append("thing-0", put(a=0))
            stage.wait_all()
        yield stage


@pytest.fixture(params=[True, False], ids=["conditional", "unconditional"])
def conditional(request: pytest.FixtureRequest, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the stage's store is one that compares and sets: both, one after the other."""
    if not request.param:
        monkeypatch.delattr(PostgresSink, "conditional")
    return bool(request.param)


@contextmanager
def stepping(stage: Stage) -> Iterator[Session]:
    """A session in small batches that has nothing left to read."""
    stations = stage.side.stations("rows")
    small = replace(stations, resilience=replace(stations.resilience, batch=TAKEN // 2, batch_max=TAKEN))
    with ExitStack() as stack:
        session = Session(stage.side.plan("rows"), small, stage.serving(), Flag(), stack)
        while session.lag() or not session._consumer.assignment():
            session.step()
        yield session


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[Ready]:
    """The batches that were folded on one that was not written."""
    found: list[Ready] = []
    fold = Pipeline.fold

    def noted(self: Pipeline, events: Any, *, after: Ready | None = None) -> Ready:
        ready = fold(self, events, after=after)
        if after is not None and {f.stream for f in after.folded} & {f.stream for f in ready.folded}:
            found.append(ready)
        return ready

    monkeypatch.setattr(Pipeline, "fold", noted)
    return found


def test_what_came_late_is_compared_with_the_log_unless_the_store_compares_and_sets(
    conditional: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    monkeypatch.setattr(Late, "_put_right", lambda *_: compared.append("late"))
    with stepping(stage) as session:
        publish(stage, 1)
        drain(session)
    assert bool(compared) != conditional
    assert_equal_to_model(stage)


def test_a_sink_that_says_it_does_not_compare_and_set_is_believed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`conditional = False` was taken for True, since it has the name; and nothing late was ever put right."""
    compared: list[str] = []
    monkeypatch.setattr(Late, "_put_right", lambda *_: compared.append("late"))
    monkeypatch.setattr(PostgresSink, "conditional", False)
    with stepping(stage) as session:
        publish(stage, 1)
        drain(session)
    assert compared


def publish(stage: Stage, rounds: int, **more: Any) -> None:
    """So many events of each stream, in turn."""
    for number in range(rounds):
        for stream in range(STREAMS):
            stage.append(f"thing-{stream}", put(**{f"p{number % 3}": number}, **more))
    relay(stage)


def relay(stage: Stage) -> None:
    stage.side.write.relay().run(Flag(), drain=True)


def drain(session: Session) -> None:
    while session.lag():
        session.step()


def test_a_batch_is_folded_on_the_states_that_the_one_in_hand_comes_to(stage: Stage, ahead: list[Ready]) -> None:
    with stepping(stage) as session:
        publish(stage, 12)
        drain(session)
    assert ahead
    assert_equal_to_model(stage)


def test_a_store_that_compares_and_sets_is_written_while_the_next_batch_is_taken(
    conditional: bool, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, begun = PostgresSink.apply, Flag()
    writing: list[bool] = []

    def noted(self: PostgresSink, generation: str, changes: Sequence[Any]) -> None:
        begun.set()
        apply(self, generation, changes)

    with stepping(stage) as session:
        publish(stage, 12)
        session._batch = session._fold(session._poll(BEGINS_WITHIN_S))
        poll = session._consumer.poll

        def asked(messages: int, timeout_s: float) -> Sequence[Delivery]:
            writing.append(begun.wait(BEGINS_WITHIN_S) if conditional else begun.is_set())
            return poll(messages, timeout_s)

        monkeypatch.setattr(session._consumer, "poll", asked)
        monkeypatch.setattr(PostgresSink, "apply", noted)
        session.step()
        drain(session)
    assert writing[0] == conditional
    assert_equal_to_model(stage)


def test_a_session_takes_more_at_once_the_longer_a_backlog_lasts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with stepping(stage) as session:
        poll = session._consumer.poll
        monkeypatch.setattr(
            session._consumer, "poll", lambda messages, timeout_s: asked.append(messages) or poll(messages, timeout_s)
        )
        session.step()
        publish(stage, 5)
        drain(session)
        session.step()
        session.step()
    assert asked[0] == asked[-1] == TAKEN // 2, "the store waits for the first fold of a backlog"
    assert max(asked) == TAKEN
    assert_equal_to_model(stage)


def test_messages_that_stand_for_many_records_are_taken_few_at_a_time_and_folded_ahead_as_well(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    folded_on: list[bool] = []
    fold = Pipeline.fold

    def noted(self: Pipeline, events: Any, *, after: Ready | None = None) -> Ready:
        folded_on.append(after is not None)
        return fold(self, events, after=after)

    with stepping(stage) as session:
        for stream in range(12):
            stage.append(f"thing-{100 + stream}", put(a=1, b=2, c=3))
        relay(stage)
        poll = session._consumer.poll
        monkeypatch.setattr(Pipeline, "fold", noted)
        monkeypatch.setattr(
            session._consumer, "poll", lambda messages, timeout_s: asked.append(messages) or poll(messages, timeout_s)
        )
        drain(session)
        session.step()
        session.step()
    assert asked[:3] == [TAKEN // 2, TAKEN // 3, TAKEN // 3], "once it is known what a message asks of the store"
    assert asked[-1] == TAKEN // 2 // 3, "the store waits for the first fold of the next backlog"
    assert sum(folded_on) > 1, "not only behind a batch of many messages"
    assert_equal_to_model(stage)


def test_a_stream_that_fails_in_the_batch_in_hand_does_not_go_on_in_the_next(stage: Stage, ahead: list[Ready]) -> None:
    with stepping(stage) as session:
        for number in range(12):
            for stream in range(STREAMS):
                stage.append(f"thing-{stream}", bad() if (stream, number) == (3, 1) else put(b=number))
        relay(stage)
        drain(session)
    assert ahead
    assert [letter.stream for letter in stage.letters()] == ["thing-3"]
    assert stage.letters()[0].attempts == 1
    assert_equal_to_model(stage)


def test_a_record_refused_in_the_batch_in_hand_is_not_written_by_the_next(
    stage: Stage, ahead: list[Ready], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = PostgresSink.apply

    def refusing(self: PostgresSink, generation: str, changes: Sequence[Any]) -> None:
        apply(self, generation, [c for c in changes if c.stream != "thing-3"])
        if refused := {c.key: "odd" for c in changes if c.stream == "thing-3"}:
            raise RecordsRefused(refused)

    monkeypatch.setattr(PostgresSink, "apply", refusing)
    with stepping(stage) as session:
        publish(stage, 12)
        drain(session)
    assert ahead
    assert [(letter.stream, letter.version, letter.attempts) for letter in stage.letters()] == [("thing-3", 1, 1)]
    assert not [key for key in stage.held() if key.startswith("thing-3#")]


def test_what_is_in_hand_is_written_though_the_broker_is_away(stage: Stage) -> None:
    with stepping(stage) as session:
        publish(stage, 12)
        real, asked = session._consumer.poll, []

        def away(most: int, timeout_s: float) -> Sequence[Delivery]:
            asked.append(timeout_s)
            if len(asked) == 2:
                raise BrokerUnavailable("away")
            return real(most, timeout_s)

        session._consumer.poll = away  # type: ignore[method-assign]
        before = ledger.checkpoints(stage.connection, "rows", stage.serving())
        assert session.step()
        assert ledger.checkpoints(stage.connection, "rows", stage.serving()) != before
        drain(session)
    assert_equal_to_model(stage)


def test_what_is_in_hand_of_a_partition_that_goes_to_another_member_is_left_to_it(
    conditional: bool, stage: Stage
) -> None:
    """The other member joins between the poll that gave the batch and the one that looks ahead."""
    with stepping(stage) as session, ExitStack() as stack:
        publish(stage, 12)
        broker = stage.side.stations("rows").broker()
        stack.callback(broker.close)
        group = f"{session._stations.group_prefix}.rows.{stage.serving()}"
        mine, in_hand = session._consumer, list[Delivery]()
        real = mine.poll

        def shared(most: int, timeout_s: float) -> Sequence[Delivery]:
            if timeout_s:
                in_hand.extend(found := real(most, timeout_s))
                return found
            before, other = mine.assignment(), broker.consumer(group, session._plan.topics, lambda _: None)
            stack.callback(other.close)
            coming: list[Delivery] = []

            def gone() -> bool:
                coming.extend(real(most, 0.05))
                other.poll(1, 0.05)
                return mine.assignment() != before and bool(other.assignment())

            until(gone, "no partition went to the other member")
            return coming

        mine.poll = shared  # type: ignore[method-assign]
        before = ledger.checkpoints(stage.connection, "rows", stage.serving())
        lost: set[TopicPartition] = set()
        held = stage.held()
        while not lost:
            in_hand.clear()
            session.step()
            lost = {TopicPartition(d.topic, d.partition) for d in in_hand} - mine.assignment()
        streams = {d.key for d in in_hand if TopicPartition(d.topic, d.partition) in lost}
        now = stage.held()
        written = {k for k in now if k.partition("#")[0] in streams and now[k] != held.get(k)}
        assert conditional or not written, "a store that cannot compare and set has one writer at a time"
        after = ledger.checkpoints(stage.connection, "rows", stage.serving())
        assert {tp: after.get(tp) for tp in lost} == {tp: before.get(tp) for tp in lost}
        mine.poll = real  # type: ignore[method-assign]
        stack.close()
        until(lambda: session.step() == 0 and not session.lag(), "what was left is not taken up again")
    assert_equal_to_model(stage)


def test_an_event_that_was_given_up_at_another_member_is_passed_over_by_who_holds_its_partition(stage: Stage) -> None:
    with stepping(stage) as session:
        stage.append("thing-1", put(a=1), bad())
        relay(stage)
        drain(session)
        assert [letter.version for letter in stage.letters()] == [2]
        operations.discard_dead_letter(stage.side, projector="rows", stream="thing-1")
        with ExitStack() as stack:
            other = Session(stage.side.plan("rows"), stage.side.stations("rows"), stage.serving(), Flag(), stack)
            assert other.redrive() == 1
        stage.append("thing-1", put(b=1))
        relay(stage)
        drain(session)
    assert stage.letters() == []
    assert {key for key in stage.held() if key.startswith("thing-1#")} == {"thing-1#a", "thing-1#b"}


def test_what_is_doubtful_is_looked_after_by_the_session_that_follows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a write never came, and to trying it again neither: that ends a session."""
    apply, put_right = PostgresSink.apply, Late._put_right
    answers = [StoreUnavailable("no answer in time")] * Resilience().attempts
    doubtful: list[set[str]] = []

    def unanswered(sink: PostgresSink, generation: str, changes: Sequence[Change]) -> None:
        if changes and answers:
            raise answers.pop()
        apply(sink, generation, changes)

    def looked_after(late: Late, generation: str) -> None:
        doubtful.append(set(late._doubts.get(generation, ())))
        put_right(late, generation)

    monkeypatch.delattr(PostgresSink, "conditional")
    monkeypatch.setattr(PostgresSink, "apply", unanswered)
    monkeypatch.setattr(Late, "_put_right", looked_after)
    with stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
    assert {"thing-1"} in doubtful
    assert_equal_to_model(stage)


def test_a_member_halted_in_the_midst_of_its_checkpoint_holds_nobody_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    halted, goes_on, save = Flag(), Flag(), ledger.save_checkpoints

    def halting(*given: Any) -> None:
        save(*given)
        if not halted.is_set():
            halted.set()
            goes_on.wait(PATIENCE_S)

    monkeypatch.setattr("outbox.database.HALTED_MS", 500)
    with stage.running():
        monkeypatch.setattr(ledger, "save_checkpoints", halting)
        stage.append("thing-0", put(a=1))
        assert halted.wait(PATIENCE_S)
        try:
            stage.connection.execute("SET statement_timeout = '20s'")
            stage.connection.execute('UPDATE outbox.checkpoint SET "offset" = "offset"')  # its successor's
        finally:
            goes_on.set()
        stage.wait_all()
    assert_equal_to_model(stage)


def test_a_stream_that_is_tried_again_may_take_the_store_longer_than_a_member_may_stand_still(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, paused = Pipeline.apply_whole, Flag()

    def slowly(*given: Any) -> Any:
        paused.wait(1.0)
        return whole(*given)

    monkeypatch.setattr("outbox.database.HALTED_MS", 200)
    monkeypatch.setattr(Pipeline, "apply_whole", slowly)
    with stepping(stage) as session:
        stage.append("thing-3", bad())
        relay(stage)
        drain(session)
        assert [letter.stream for letter in stage.letters()] == ["thing-3"]
        stage.projection.mended = True
        ledger.ask_retry(stage.connection, "rows")
        assert session.redrive() == 1
    assert not stage.letters()
