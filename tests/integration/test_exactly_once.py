"""Exactly once on real Kafka: relays killed at random, and stopped and woken too late."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable

import pytest

from tests.integration.once import Load, expected, lead, published, relays, seen, settings, waiting
from tests.relaying import until, without_slots

KILLS = int(os.environ.get("OUTBOX_TEST_KILLS", "15"))
"""``OUTBOX_TEST_KILLS=200`` is the published figure's."""
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "4"))
WORK_S = 0.4
"""A leader is killed within this after it has published its first page."""


@pytest.fixture
def bootstrap(address: Callable[[str], str]) -> str:
    return address("kafka")


@pytest.fixture
def prefix() -> str:
    return f"once{uuid.uuid4().hex[:10]}"


@pytest.mark.timeout(60 + 30 * KILLS)
@pytest.mark.parametrize(("client", "engine"), [("confluent", "poll"), ("kafka-python", "poll"), ("confluent", "cdc")])
def test_a_reader_of_committed_messages_sees_each_event_once_however_often_relays_are_killed(
    database, bootstrap, prefix, client, engine, tmp_path
):
    how = settings(database, bootstrap, prefix, OUTBOX_KAFKA__CLIENT=client, OUTBOX_RELAY__ENGINE=engine)
    source, load, moment = random.Random(SEED), Load(database, SEED), threading.Event()
    with relays(database, how, tmp_path) as found, without_slots(database):
        with load.running():
            found.start()
            for _ in range(KILLS):
                found.start()
                leader = lead(found)
                before = published(database)
                until(lambda before=before: published(database) > before, 60)
                moment.wait(source.uniform(0, WORK_S))
                found.kill(leader)
        until(lambda: not waiting(database), 120)
        for process in list(found.running.values()):
            found.kill(process)
    committed = seen(bootstrap, f"{prefix}.order")
    written = sum(map(len, seen(bootstrap, f"{prefix}.order", "read_uncommitted").values()))
    print(f"{KILLS} kills, {load.total} events, {written - load.total} messages undone")
    assert committed == expected(load)
