"""A server of PostgreSQL that crashes takes back what the relay had written and not waited for, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
import pytest

from deploy.local.local import Local
from outbox import database
from outbox.broker.protocol import Message, Note, TopicPartition
from outbox.database import connected
from outbox.log.append import append
from outbox.log.migrate import migrate
from outbox.relay import cursor as cursors
from outbox.relay.engines import open_engine
from outbox.relay.exactly_once import ExactlyOnceLeader, recover
from outbox.relay.lease import take
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, drain, first_occurrences, leading

SETTINGS = RelaySettings(page_min=5, page_max=5)
LAZY = {"wal_writer_delay": "10s", "autovacuum": "off", "checkpoint_timeout": "1h"}
"""Nobody writes the log to disk but who waits for it."""
ROUNDS = 4
"""The server's own writer of the log may still come in between: not in each of them."""


@pytest.fixture
def servers() -> Iterator[Local]:
    with Local(settings={"postgres": LAZY}) as local:
        (postgres,) = local.start("postgres")
        with connected(postgres.address) as connection:
            migrate(connection)
        yield local


def crash(servers: Local) -> None:
    servers.kill("postgres")
    servers.restart("postgres")


def appended(dsn: str, count: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = on")
        for _ in range(count):
            append(connection, "order-1", event())


def test_what_a_crash_of_postgresql_takes_back_is_published_again_by_a_later_epoch(servers: Local) -> None:
    dsn, recorder = servers["postgres"].address, Recorder()
    epochs, again = [], 0
    for number in range(1, ROUNDS + 1):
        appended(dsn, 20)
        before = len(recorder.messages)
        with leading(dsn, recorder, SETTINGS) as leader:
            epochs.append(leader._lease.epoch)
            drain(leader)
            again += len(recorder.messages) - before - 20
            crash(servers)
        assert first_occurrences(recorder.versions("order-1")) == list(range(1, 20 * number + 1))
    with leading(dsn, recorder, SETTINGS) as leader:
        drain(leader)
    versions = recorder.versions("order-1")
    assert first_occurrences(versions) == list(range(1, 20 * ROUNDS + 1))
    assert versions[-1] == 20 * ROUNDS, "what is published again ends where it ended"
    assert epochs == sorted(set(epochs)), "no epoch comes twice"
    assert again, "no crash took anything back: every commit was waited for"


class Noting(Recorder):
    """A recorder of transactions."""

    note: bytes | None = None

    def publish(self, messages: Sequence[Message], note: Note | None = None) -> dict[TopicPartition, int]:
        places = super().publish(messages)
        self.note = self.note if note is None else note(places)
        return places

    def recover(self) -> bytes | None:
        return self.note


@pytest.mark.parametrize("waits", ["on", "off"])
def test_a_crash_of_postgresql_takes_back_no_page_of_an_exactly_once_relay(servers: Local, waits: str) -> None:
    """Even if the database has been told that its commits need not wait."""
    dsn, broker = servers["postgres"].address, Noting()
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(f'ALTER DATABASE "{owner.info.dbname}" SET synchronous_commit = {waits}')
    for number in range(1, ROUNDS + 1):
        appended(dsn, 20)
        with database.leading(dsn) as connection:
            lease = take(connection, SETTINGS.name, "test", SETTINGS.lease_s)
            assert lease is not None
            identity = recover(connection, broker, lease, SETTINGS, lambda: None)
            with open_engine(dsn, lease, SETTINGS) as engine:
                drain(ExactlyOnceLeader(connection, engine, broker, lease, SETTINGS, identity))
                crash(servers)
        with connected(dsn) as connection:
            assert cursors.steps(connection, SETTINGS.name) == 4 * number
    assert broker.versions("order-1") == list(range(1, 20 * ROUNDS + 1))
