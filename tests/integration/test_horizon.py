"""What a session makes of offsets that jump. On the local broker: there one message can be taken from the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event as Flag

import pytest

from outbox.broker.local import LocalBroker
from outbox.errors import BrokerUnavailable
from projectors import horizon
from tests.integration.reading import Stage, assert_equal_to_model, put, settings_of, staged


@pytest.fixture
def stage(database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    with staged(settings_of("local", database, address)) as stage:
        yield stage


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
