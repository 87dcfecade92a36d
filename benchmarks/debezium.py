"""The relay's drain beside Debezium 3.3 in Kafka Connect: ``python -m benchmarks.debezium``.

Both publish the same rows (one-row transactions, 450 bytes of data) out of one database to one Kafka, 12 partitions,
lz4, by turns. The relay's clock starts once a tenth of the rows is published. So does Debezium's, as seen in the ends
of its topic's partitions: neither the start of its JVM nor that of its connector is counted. Memory is the most that
was resident of the process, the JVM's heap bounded as Kafka's own scripts bound it (2 GiB).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.connect import Connect
from benchmarks.databases import fresh_database
from benchmarks.draining import WARM_SHARE
from benchmarks.measuring import interleaved
from benchmarks.memory import peak_mib
from benchmarks.relay import ENGINES, KEYS, Relays, contender
from benchmarks.results import Result, at_least, at_most, beside
from benchmarks.waiting import Backlog, fill, run_on_rows
from deploy.local.resolve import Resolved
from outbox.broker import KafkaSettings, open_kafka

ROWS: Final = 100_000
"""A quarter of what the aim is stated for, so that all benchmarks together end in time: ``--rows 400000`` is that. Of
fewer the JVM has not compiled what it runs before they are over, which flatters us."""
FIRST: Final = 100
"""Rows that its first start publishes: without an offset noted it would pass by what waits."""
POLL_MS, LINGER_MS = 10, 20
"""For a backlog; a trickle wants less."""
PEER: Final = "Debezium"
TARGETS: Final = {"poll": at_least(5), "cdc": at_least(2)}
MEMORY: Final = at_most(1 / 8)


def drain(connect: Connect, backlog: Backlog, peaks_mib: list[float]) -> float:
    """Rows a second that Debezium publishes of the backlog, once it is at work."""
    rows = backlog.ready(PEER)
    with closing(open_kafka(KafkaSettings(connect.bootstrap))) as broker:
        before = connect.published(broker)
        with connect.running() as pid:
            connect.wait(pid, lambda: connect.published(broker) >= before + rows // WARM_SHARE)
            warm, began = connect.published(broker), time.perf_counter()
            connect.wait(pid, lambda: connect.published(broker) >= before + rows)
            took_s, done = time.perf_counter() - began, connect.published(broker)
            peaks_mib.append(peak_mib(pid.number))
    return (done - warm) / took_s


@contextmanager
def prepared(dsn: str, bootstrap: str, *, poll_ms: int = POLL_MS, linger_ms: int = LINGER_MS) -> Iterator[Connect]:
    """Debezium with a slot, and a place noted in it."""
    with tempfile.TemporaryDirectory() as folder, closing(open_kafka(KafkaSettings(bootstrap))) as broker:
        connect = Connect(dsn, bootstrap, f"debezium{uuid.uuid4().hex[:8]}", Path(folder), poll_ms, linger_ms)
        with connect.running() as pid:
            connect.wait(pid, connect.streams)
            fill(dsn, FIRST, FIRST)
            connect.wait(pid, lambda: connect.published(broker) >= FIRST)
        yield connect


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    warm_up = 0 if given.quick else 1
    bootstrap = servers.address("kafka")
    with fresh_database(servers.address("postgres")) as dsn, prepared(dsn, bootstrap) as connect:
        backlog = Backlog(dsn, given.rows, given.keys)
        relays = Relays(backlog, bootstrap)
        for engine in ENGINES:
            relays.prepare(engine, "confluent")
        theirs_mib: list[float] = []
        turns = {contender(engine, "confluent"): partial(relays.drain, engine, "confluent") for engine in ENGINES}
        turns[PEER] = partial(drain, connect, backlog, theirs_mib)
        rates = interleaved(turns, given.rounds, warm_up)
    for engine in ENGINES:
        name = contender(engine, "confluent")
        note = f"{given.rows:,} rows"
        yield beside(f"relay drain, {name}", rates, (name, PEER), "rows/s", TARGETS[engine], note)
        memory = {name: relays.peaks_mib[name][warm_up:], PEER: theirs_mib[warm_up:]}
        yield beside(f"memory of the relay, {name}", memory, (name, PEER), "MiB", MEMORY)


def main() -> None:
    run_on_rows("debezium", __doc__, measure, ROWS, KEYS, quick_rows=1_000)


if __name__ == "__main__":
    main()
