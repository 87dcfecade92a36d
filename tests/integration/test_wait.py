"""Reading your own writes: neither too early nor for longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from outbox.database import connected
from outbox.errors import WaitTimeout
from outbox.log.append import append
from outbox.settings import Projecting
from projectors import ledger, operations
from projectors.sinks.postgres import PostgresSink
from projectors.wait import wait_for
from projectors.wiring import Running
from tests.integration.reading import Stage, assert_equal_to_model, put, settings_of, staged

every_broker = pytest.mark.parametrize("broker", ["local", "kafka-confluent"])


@every_broker
def test_after_the_wait_the_store_holds_what_was_written(stage: Stage) -> None:
    with stage.running():
        for n in range(60):
            stage.wait(stage.append(f"thing-{n % 7}", put(a=n)))
            assert stage.held()[f"thing-{n % 7}#a"] == stage.model()[f"thing-{n % 7}#a"]


@every_broker
def test_all_streams_of_one_transaction_are_waited_for(stage: Stage) -> None:
    with stage.running():
        for n in range(10):
            with stage.connection.transaction():
                tokens = [append(stage.connection, f"thing-{k}", put(a=f"{n}.{k}")).token for k in range(20)]
            stage.wait(tokens[0])
            assert stage.held() == stage.model()


@every_broker
def test_an_unrelated_transaction_that_stays_open_holds_nobody_up(stage: Stage) -> None:
    with stage.running(), connected(stage.side.write.dsn) as other:
        stage.wait_all()
        with other.transaction():
            append(other, "thing-slow", put(a=1))
            for n in range(20):
                stage.wait(stage.append("thing-1", put(a=n)), timeout_s=5.0)
                assert stage.held()["thing-1#a"] == stage.model()["thing-1#a"]
            assert "thing-slow#a" not in stage.held()
        stage.wait_all()
        assert stage.held() == stage.model()


@pytest.mark.parametrize("broker", ["local"])
def test_without_a_relay_the_time_out_says_so(stage: Stage) -> None:
    token = stage.append("thing-1", put(a=1))
    with pytest.raises(WaitTimeout, match=f"transaction {token} is not published: is a relay running"):
        stage.wait(token, timeout_s=0.1)


def test_the_time_out_names_who_is_behind_and_nobody_else(database: str, address: Callable[[str], str]) -> None:
    names = {name: Projecting(projection="parts", store="postgres") for name in ("quick", "slow", "slower")}
    with staged(settings_of("local", database, address, projectors=names)) as stage, stage.running():
        stage.wait_all()
        with connected(stage.side.write.dsn) as other, other.transaction():
            for name in ("slow", "slower"):
                other.execute(f'LOCK TABLE outbox_rows."{name}:g1" IN EXCLUSIVE MODE'.encode())
            token = stage.append("thing-1", put(a=1))
            stage.wait(token, "quick")
            with pytest.raises(WaitTimeout) as caught:
                stage.wait(token, timeout_s=0.3)
            assert "behind is slow on 1 partition(s), slower on 1 partition(s)" in str(caught.value)
        stage.wait(token)


@pytest.mark.parametrize("broker", ["local"])
def test_a_projector_that_does_not_run_is_named_and_the_time_is_kept(stage: Stage) -> None:
    with Running(stage.side, [], relay=True):
        token = stage.append("thing-1", put(a=1))
        began = time.monotonic()
        with pytest.raises(WaitTimeout, match="behind is rows on 1 partition"):
            stage.wait(token, timeout_s=1.0)
        assert time.monotonic() - began < 10.0  # not the relay's or a projector's own, much longer times


@pytest.mark.parametrize("broker", ["local"])
def test_topics_that_nobody_asked_for_are_not_waited_for(stage: Stage) -> None:
    with Running(stage.side, [], relay=True):
        token = stage.append("thing-1", put(a=1))
        wait_for(stage.connection, token, {"rows": ["no.such.topic"]}, 5.0)


@every_broker
def test_what_was_waited_for_stays_when_another_generation_serves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch, switched = PostgresSink.switch, ledger.switch_generation
    found: list[dict[str, bytes]] = []

    def alias(sink: PostgresSink, generation: str) -> None:
        """As late as can be, somebody writes and waits for it."""
        switch(sink, generation)
        if generation == "g2" and not found:
            with connected(stage.side.write.dsn) as connection:
                for n in range(20):
                    token = append(connection, f"thing-{n}", put(late=n)).token
                wait_for(connection, token, {"rows": stage.side.plan("rows").topics}, 30.0)

    def row(*given: Any, **more: Any) -> None:
        switched(*given, **more)
        found.append(stage.held(generation=stage.serving()))

    with stage.running():
        for n in range(20):
            stage.append(f"thing-{n}", put(a=n))
        stage.wait_all()
        monkeypatch.setattr(PostgresSink, "switch", alias)
        monkeypatch.setattr(ledger, "switch_generation", row)
        assert operations.rebuild(stage.side, projector="rows")["generation"] == "g2"
        assert not {f"thing-{n}#late" for n in range(20)} - found[0].keys()
        stage.wait_all()
    assert_equal_to_model(stage)
