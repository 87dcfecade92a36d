"""Exactly once beside at least once: rows a second that a leader drains into Kafka: ``python -m benchmarks.delivery``.

The two take turns on one machine, each in a database and under a prefix of its own, so that a noisy machine is noisy
for both; what counts is the ratio within a round. Taking the lead (a lease, and for exactly once the fence and the last
note) is timed apart: it is paid once a term.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

from psycopg import conninfo, sql

from deploy.local.resolve import resolve
from outbox.broker import Broker, KafkaSettings, open_kafka
from outbox.database import connect, connected
from outbox.event import NewEvent
from outbox.log.bulk import bulk_append
from outbox.log.migrate import migrate
from outbox.relay.engines import open_engine
from outbox.relay.exactly_once import ExactlyOnceLeader, recover
from outbox.relay.leader import Leader
from outbox.relay.lease import take
from outbox.relay.settings import DeliveryName, RelaySettings

RESULTS: Final = Path(__file__).parent / "results" / "delivery.json"
DATA: Final = {"kind": "customer", "name": "Ada Lovelace", "text": "x" * 200, "properties": {"city": "London", "n": 7}}
STREAM_EVENTS: Final = 100
WAYS: Final[tuple[DeliveryName, ...]] = get_args(DeliveryName)


def main() -> None:
    """Measure, print each round and the medians, and write them down."""
    arguments = parsed()
    with ExitStack() as stack:
        servers = stack.enter_context(resolve(["postgres", "kafka"]))
        kafka = KafkaSettings(servers.address("kafka"), client=arguments.client)
        rounds = []
        for turn in range(arguments.rounds + 1):
            ways = WAYS if turn % 2 else WAYS[::-1]
            measured = {way: drained(servers.address("postgres"), kafka, way, arguments.rows) for way in ways}
            if turn:  # the first one warms up
                rounds.append(measured | {"ratio": ratio(measured), "load": os.getloadavg()[0]})
                print(json.dumps(rounds[-1]), flush=True)
    found = {
        "client": arguments.client,
        "rows": arguments.rows,
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "ratio": round(median(r["ratio"] for r in rounds), 3),
        "rows_per_s": {way: round(median(r[way]["rows_per_s"] for r in rounds)) for way in WAYS},
        "rounds": rounds,
    }
    print(json.dumps({name: found[name] for name in ("client", "ratio", "rows_per_s")}))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", choices=["confluent", "kafka-python"], default="confluent")
    return parser.parse_args()


def ratio(measured: dict[DeliveryName, dict[str, float]]) -> float:
    once, least = measured["exactly_once"], measured["at_least_once"]
    return round(once["rows_per_s"] / least["rows_per_s"], 3)


def drained(server: str, kafka: KafkaSettings, way: DeliveryName, rows: int) -> dict[str, float]:
    """Fill an outbox, lead, and drain it."""
    settings = RelaySettings(prefix=f"bench{uuid.uuid4().hex[:8]}", delivery=way)
    with database(server) as dsn, closing(open_kafka(kafka)) as broker:
        fill(dsn, 1_000)
        began_s = time.perf_counter()
        with leading(dsn, broker, settings) as leader:
            led_s = time.perf_counter()
            while leader.step():  # topics are made, connections are warm
                pass
            fill(dsn, rows)
            began_drain_s, pages = time.perf_counter(), 0
            while leader.step():
                pages += 1
            took_s = time.perf_counter() - began_drain_s
    return {"rows_per_s": round(rows / took_s), "pages": pages, "lead_s": round(led_s - began_s, 3)}


@contextmanager
def leading(dsn: str, broker: Broker, settings: RelaySettings) -> Iterator[Leader]:
    with connected(dsn) as connection:
        lease = take(connection, settings.name, "benchmark", 600)
        if lease is None:
            raise RuntimeError("a new database's lease is taken")
        with open_engine(dsn, lease, settings) as engine:
            if settings.delivery == "at_least_once":
                with closing(broker.producer()) as producer:
                    yield Leader(connection, engine, producer, lease, settings)
                return
            with closing(broker.transactions(settings.transactions)) as transactions:
                identity = recover(connection, transactions, lease, settings, lambda: None)
                yield ExactlyOnceLeader(connection, engine, transactions, lease, settings, identity)


def fill(dsn: str, rows: int) -> None:
    def batches() -> Iterator[Any]:
        for _ in range(rows // STREAM_EVENTS):
            yield f"customer-{uuid.uuid4().hex}", 0, [NewEvent("entity.upserted", DATA) for _ in range(STREAM_EVENTS)]

    with closing(connect(dsn, autocommit=False)) as connection:
        bulk_append(connection, batches())
        connection.commit()


@contextmanager
def database(server: str) -> Iterator[str]:
    """A migrated database of its own, dropped at the end."""
    name = f"outbox_bench_{uuid.uuid4().hex[:8]}"
    with connected(server) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        dsn = conninfo.make_conninfo(server, dbname=name)
        try:
            with connected(dsn) as own:
                migrate(own)
            yield dsn
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


if __name__ == "__main__":
    main()
