"""Exactly once on real Kafka: relays killed at random, and stopped and woken too late."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Callable

import pytest

from tests.integration.once import Load, expected, lead, published, relays, seen, settings, waiting
from tests.relaying import until, without_slots

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "15"))
"""``OUTBOX_TEST_KILLS=200`` is the published figure's."""
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "4"))
ZOMBIES = 3
WORK_S = 0.4
"""A leader is killed within this after it has published its first page,"""
AT_WORK = 0.7
"""so often; else after it has begun to lead, while it recovers."""


@pytest.fixture
def bootstrap(address: Callable[[str], str]) -> str:
    return address("kafka")


@pytest.fixture
def prefix() -> str:
    return f"once{uuid.uuid4().hex[:10]}"


@pytest.mark.timeout(60 + 30 * KILLS)
@pytest.mark.parametrize(
    ("client", "engine", "kills"),
    [("confluent", "poll", KILLS), ("kafka-python", "poll", KILLS // 3), ("confluent", "cdc", KILLS // 3)],
)
def test_a_reader_of_committed_messages_sees_each_event_once_however_often_relays_are_killed(
    database, bootstrap, prefix, client, engine, kills, tmp_path
):
    how = settings(database, bootstrap, prefix, OUTBOX_KAFKA__CLIENT=client, OUTBOX_RELAY__ENGINE=engine)
    source, load, moment = random.Random(SEED), Load(database, SEED), threading.Event()
    with relays(database, how, tmp_path) as found, without_slots(database):
        with load.running():
            found.start()
            for _ in range(kills):
                found.start()
                leader = lead(found)
                before = published(database)
                if source.random() < AT_WORK:
                    until(lambda before=before: published(database) > before, 60)
                moment.wait(source.uniform(0, WORK_S))
                found.kill(leader)
        until(lambda: not waiting(database), 120)
        found.close()
    committed = seen(bootstrap, f"{prefix}.order")
    written = sum(map(len, seen(bootstrap, f"{prefix}.order", "read_uncommitted").values()))
    print(f"{kills} kills, {load.total} events, {written - load.total} messages undone")
    assert committed == expected(load)


@pytest.mark.parametrize("client", ["confluent", "kafka-python"])
def test_a_leader_stopped_and_woken_too_late_is_fenced_and_doubles_nothing(
    database, bootstrap, prefix, client, tmp_path
):
    how = settings(database, bootstrap, prefix, OUTBOX_KAFKA__CLIENT=client)
    source, load, moment = random.Random(SEED), Load(database, SEED), threading.Event()
    with relays(database, how, tmp_path) as found:
        with load.running():
            found.start()
            found.start()
            for turn in range(ZOMBIES):
                zombie = lead(found)
                before = published(database)
                until(lambda before=before: published(database) > before, 60)
                moment.wait(source.uniform(0, WORK_S))
                zombie.pause()
                lead(found, other_than=zombie)
                before = published(database)
                until(lambda before=before: published(database) > before + 1, 60)
                zombie.resume()
                until(lambda turn=turn: found.said("no longer the leader") + found.said("will try again") > turn, 60)
        until(lambda: not waiting(database), 120)
    assert seen(bootstrap, f"{prefix}.order") == expected(load)
