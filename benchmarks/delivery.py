"""Exactly once beside at least once: rows a second that a leader drains into Kafka: ``python -m benchmarks.delivery``.

Both drain the same rows of 450 bytes out of one database, each under a name and a prefix of its own, in a process of
its own. Taking the lead (a lease, and for exactly once the fence and the last note) is timed apart: it is paid once a
term.
"""

from __future__ import annotations

import argparse
import uuid
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Final, get_args

from benchmarks.databases import fresh_database
from benchmarks.draining import Drained, drained, prepared
from benchmarks.measuring import interleaved
from benchmarks.relay import PAIRS, contender
from benchmarks.results import Result, at_least, beside
from benchmarks.waiting import Backlog, run_on_rows
from deploy.local.resolve import Resolved
from outbox.broker import KafkaSettings
from outbox.relay.settings import DeliveryName, EngineName, RelaySettings

ROWS: Final = 80_000
KEYS: Final = 2_000
WAYS: Final[tuple[DeliveryName, ...]] = get_args(DeliveryName)


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for engine, client in (pair for pair in PAIRS if given.only in contender(*pair)):
        kafka = KafkaSettings(servers.address("kafka"), client=client)
        with fresh_database(servers.address("postgres")) as dsn:
            yield from compared(Backlog(dsn, given.rows, given.keys), kafka, engine, given)


def compared(backlog: Backlog, kafka: KafkaSettings, engine: EngineName, given: argparse.Namespace) -> Iterator[Result]:
    """Both ways by turns; the rates, and how long each took to take the lead."""
    warm_up = 0 if given.quick else 1
    lead_ms: dict[str, list[float]] = defaultdict(list)
    mark = uuid.uuid4().hex[:8]

    def turn(way: DeliveryName) -> float:
        found = drain(backlog, kafka, settings(way))
        lead_ms[way].append(found.lead_s * 1_000)
        return found.rate

    def settings(way: DeliveryName) -> RelaySettings:
        return RelaySettings(name=way, prefix=f"{way}{mark}", engine=engine, delivery=way)

    for way in WAYS:
        prepared(backlog.dsn, kafka, settings(way))
    rates = interleaved({way: partial(turn, way) for way in WAYS}, given.rounds, warm_up)
    case, names = contender(engine, kafka.client), ("exactly_once", "at_least_once")
    yield beside(f"exactly once, {case}", rates, names, "rows/s", at_least(0.9))
    leads = {way: figures[warm_up:] for way, figures in lead_ms.items()}
    yield beside(f"taking the lead, {case}", leads, names, "ms", note="once a term, not part of the rate")


def drain(backlog: Backlog, kafka: KafkaSettings, settings: RelaySettings) -> Drained:
    rows = backlog.ready(settings.name)
    return drained(backlog.dsn, kafka, settings, rows)


def main() -> None:
    run_on_rows("delivery", __doc__, measure, ROWS, KEYS)


if __name__ == "__main__":
    main()
