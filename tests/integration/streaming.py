"""What the tests of the cdc engine share."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from outbox.relay.settings import RelaySettings
from tests.relaying import (
    Recorder,
    step_until,
    without_slots,
)

CDC = RelaySettings(engine="cdc", page_min=10, page_max=50)
POLL = replace(CDC, engine="poll")


@pytest.fixture
def dsn(database):
    with without_slots(database):
        yield database


@pytest.fixture
def producer(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def recorder():
    return Recorder()


def streaming(leader):
    """Step until the slot is made and streamed from."""
    step_until(leader, lambda: leader._engine.engine._streaming)
    return leader


def published(leader, recorder, count):
    step_until(leader, lambda: len(recorder.messages) >= count)


def written(connection):
    query = "SELECT a::text, b::text, last, slot, coalesce(lsn - '0/0', 0)::bigint, part FROM outbox.relay_cursor"
    return connection.execute(query).fetchone()


def confirmed(connection):
    query = "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE database = current_database()"
    return int(connection.execute(query).fetchone()[0])
