"""Servers that crash and come back: projectors wait them out by themselves and end where they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from deploy.local.local import Local
from outbox.database import connected
from outbox.log.migrate import migrate
from outbox.settings import Projecting
from tests.integration.reading import Stage, assert_equal_to_model, put, settings_of, staged, until

BOTH = {
    "rows": Projecting(projection="parts", store="postgres"),
    "quick": Projecting(projection="parts", store="memory"),
}


@pytest.fixture
def own() -> Iterator[Local]:
    """Servers of this test alone, to be crashed."""
    with Local() as local:
        yield local


def health(stage: Stage, name: str = "rows") -> str:
    row = stage.connection.execute("SELECT health FROM outbox.projector WHERE projector = %s", [name]).fetchone()
    return row[0] if row else ""


def test_a_dead_store_holds_up_its_own_projector_only_which_catches_up_by_itself(
    own: Local, database: str, address: Callable[[str], str]
) -> None:
    (store,) = own.start("postgres")
    stores = {"postgres": {"dsn": store.address, "timeout_s": 5}, "memory": {"space": database}}
    with staged(settings_of("local", database, address, projectors=BOTH, stores=stores)) as stage, stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        store.kill()
        for n in range(20):
            stage.wait(stage.append(f"thing-{n}", put(b=n)), "quick", timeout_s=5.0)
        assert_equal_to_model(stage, "quick")
        until(lambda: health(stage) not in {"", "ok"}, "the projector says what is wrong")
        assert "postgres" in health(stage)
        assert health(stage, "quick") == "ok"
        store.restart()
        stage.wait_all()
        assert_equal_to_model(stage, "rows")
        until(lambda: health(stage) == "ok", "it says that all is well again")
        assert stage.letters() == []


@pytest.mark.parametrize("broker", ["kafka-confluent", "kafka-python"])
def test_projectors_wait_out_a_crash_of_kafka(broker: str, own: Local, database: str) -> None:
    (kafka,) = own.start("kafka")
    with staged(settings_of(broker, database, lambda _: kafka.address)) as stage, stage.running():
        stage.append("thing-1", put(a=1))
        stage.wait_all()
        kafka.kill()
        for n in range(20):
            stage.append(f"thing-{n}", put(b=n))
        kafka.restart()
        stage.wait_all(timeout_s=60.0)
        stage.append("thing-1", put(a=2))
        stage.wait_all()
        assert_equal_to_model(stage)


@pytest.mark.parametrize("broker", ["local", "kafka-confluent"])
def test_projectors_wait_out_a_crash_of_postgresql(broker: str, own: Local, address: Callable[[str], str]) -> None:
    (postgres,) = own.start("postgres")
    with connected(postgres.address) as connection:
        migrate(connection)
    settings = settings_of(broker, postgres.address, address)
    with staged(settings) as stage, stage.running() as running:
        for n in range(20):
            stage.append(f"thing-{n}", put(a=n))
        stage.wait_all()
        for n in range(20):
            stage.append(f"thing-{n}", put(b=n))
        postgres.kill()
        postgres.restart()
        with staged(settings) as again:
            for n in range(20):
                again.append(f"thing-{n}", put(c=n))
            again.wait_all(timeout_s=60.0)
            running.check()
            assert_equal_to_model(again)
            assert len(again.held()) == 60
