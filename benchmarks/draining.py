"""A relay in a process of its own that drains what waits, and its rate and memory."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.elsewhere import WITHIN_S, elsewhere
from benchmarks.memory import peak_mib
from outbox.broker import Broker, KafkaSettings, open_kafka
from outbox.database import connected
from outbox.garbage import collect_rarely
from outbox.logs import configure_logging
from outbox.relay.ahead import ReadAhead
from outbox.relay.engines import open_engine
from outbox.relay.exactly_once import ExactlyOnceLeader, recover
from outbox.relay.leader import Leader
from outbox.relay.lease import take
from outbox.relay.settings import RelaySettings

LEASE_S: Final = 600
WAIT_S: Final = 0.01
WARM_SHARE: Final = 10
"""The first tenth of the rows is not timed: pages grow, the broker and the slot are connected to."""


@dataclass(frozen=True)
class Drained:
    """What became of one drain."""

    rate: float
    """Rows a second, after the warm-up."""
    peak_mib: float
    pages: int
    lead_s: float
    """Until the lead was taken: a lease and, for exactly once, the fence and the last note."""


def drained(dsn: str, kafka: KafkaSettings, settings: RelaySettings, rows: int) -> Drained:
    """Have a new relay of this name, in a process of its own, publish ``rows`` rows."""
    return elsewhere(_drain, dsn, kafka, settings, rows)


def prepared(dsn: str, kafka: KafkaSettings, settings: RelaySettings) -> None:
    """Have a first leader make the relay's cursor and, for the cdc engine, its slot, before there are rows for it."""
    with closing(open_kafka(kafka)) as broker, leading(dsn, broker, settings) as (leader, engine):
        until = time.monotonic() + WITHIN_S
        leader.step()
        while settings.engine == "cdc" and not _slot_made(dsn, settings):
            engine.wait(threading.Event(), WAIT_S)
            leader.step()
            if time.monotonic() > until:
                raise RuntimeError("no slot was made")


@contextmanager
def leading(dsn: str, broker: Broker, settings: RelaySettings) -> Iterator[tuple[Leader, ReadAhead]]:
    """A leader, and the engine it reads from."""
    with connected(dsn) as connection:
        lease = take(connection, settings.name, "benchmark", LEASE_S)
        if lease is None:
            raise RuntimeError(f"the lease of {settings.name!r} is taken")
        with open_engine(dsn, lease, settings) as engine:
            if settings.delivery == "at_least_once":
                with closing(broker.producer()) as producer:
                    yield Leader(connection, engine, producer, lease, settings), engine
            else:
                with closing(broker.transactions(settings.transactions)) as transactions:
                    identity = recover(connection, transactions, lease, settings, lambda: None)
                    yield ExactlyOnceLeader(connection, engine, transactions, lease, settings, identity), engine
        lease.release(connection)


def _slot_made(dsn: str, settings: RelaySettings) -> bool:
    with connected(dsn) as connection:
        row = connection.execute("SELECT slot FROM outbox.relay_cursor WHERE name = %s", [settings.name]).fetchone()
    return row is not None and row[0] is not None


def _drain(dsn: str, kafka: KafkaSettings, settings: RelaySettings, rows: int) -> Drained:
    configure_logging(logging.WARNING)
    collect_rarely()  # as the command does
    began = time.perf_counter()
    with closing(open_kafka(kafka)) as broker, leading(dsn, broker, settings) as (leader, engine):
        lead_s = time.perf_counter() - began
        warm, _ = _publish(leader, engine, rows // WARM_SHARE)
        began = time.perf_counter()
        published, pages = _publish(leader, engine, rows - warm)
        took_s = time.perf_counter() - began
        return Drained(published / took_s, peak_mib(os.getpid()), pages, lead_s)


def _publish(leader: Leader, engine: ReadAhead, rows: int) -> tuple[int, int]:
    """Step until so many rows are published; how many they were, and in how many pages."""
    published = pages = 0
    stop = threading.Event()
    while published < rows:
        step = leader.step()
        published, pages = published + step, pages + bool(step)
        if not step:
            engine.wait(stop, WAIT_S)
    return published, pages
