"""Projectors with names in their groups, on real Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event as Flag

import pytest

from outbox.errors import MemberFenced
from projectors import ledger, operations
from projectors.wiring import Running
from tests.conformance.brokers import earliest, poll_until
from tests.integration.reading import PATIENCE_S, Stage, assert_equal_to_model, put, settings_of, staged, until

pytestmark = pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])


@pytest.fixture
def stage(
    broker: str, database: str, address: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Its settings are as two processes have them that were given the same name."""
    monkeypatch.setenv("OUTBOX_KAFKA__MEMBER", "pod-0")
    monkeypatch.setenv("OUTBOX_KAFKA__SESSION_TIMEOUT_S", "6")
    with staged(settings_of(broker, database, address)) as stage:
        yield stage


def test_a_projector_whose_name_another_one_takes_ends_and_that_one_goes_on(stage: Stage) -> None:
    with Running(stage.side, []), Running(stage.side, relay=False) as older:
        until(lambda: ledger.serving(stage.connection, "rows"), "rows serves")
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        with Running(stage.side, relay=False) as newer:
            with pytest.raises(MemberFenced, match="pod-0"):
                older.wait(PATIENCE_S)
            stage.append("thing-1", put(a=2))
            stage.append("thing-2", put(a=1))
            stage.wait_all()
            newer.check()
    assert_equal_to_model(stage)


def test_only_projectors_have_the_name_so_that_who_reads_and_goes_leaves_its_group(stage: Stage) -> None:
    """The relay looks at the ends of topics; two of them with one file of settings must not fence each other."""
    broker = stage.side.write.broker()
    topic = f"{stage.side.settings.prefix}.thing"
    readers = [broker.consumer(topic, [topic], earliest) for _ in range(2)]
    poll_until(lambda: all(reader.assignment() for reader in readers), *readers)
    assert not readers[0].assignment() & readers[1].assignment()
    readers[0].close()
    poll_until(lambda: len(readers[1].assignment()) == 3, readers[1])
    readers[1].close()


def test_a_build_leaves_its_group_to_the_projectors_when_it_is_done(
    broker: str, database: str, address: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a process of its own, whose name no projector has."""
    monkeypatch.setenv("OUTBOX_KAFKA__MEMBER", "job-0")
    monkeypatch.setenv("OUTBOX_KAFKA__SESSION_TIMEOUT_S", "120")
    with staged(settings_of(broker, database, address)) as stage:
        topics = stage.side.plan("rows").topics

        def meanwhile(*_: object) -> None:
            """Something to catch up with, for which it must be in the group."""
            stage.append("thing-1", put(a=1))
            stage.side.write.relay().run(Flag(), drain=True)
            until(lambda: ledger.lag(stage.connection, "rows", "g1", topics) == 0, "it catches up")

        monkeypatch.setattr(operations, "_must_equal", meanwhile)
        assert operations.rebuild(stage.side, projector="rows")["generation"] == "g1"
        reader = stage.side.write.broker().consumer(f"{stage.side.settings.prefix}.rows.g1", topics, earliest)
        poll_until(lambda: len(reader.assignment()) == 3, reader)
        reader.close()
