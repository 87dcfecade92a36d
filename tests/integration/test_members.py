"""Projectors with names in their groups, on real Kafka."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from outbox.errors import MemberFenced
from projectors import ledger
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
