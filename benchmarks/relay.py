"""How fast a relay drains rows that wait, beside its broker's client alone: ``python -m benchmarks.relay``.

Rows of 450 bytes, each committed by a transaction of its own, are published to a real Kafka (12 partitions, lz4,
acknowledged by all) by both engines and both clients; each relay is a process of its own, and so is the reference: a
bare loop that produces the same messages out of its memory. The first tenth of the rows warms up.
"""

from __future__ import annotations

import argparse
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, get_args

from benchmarks import producing
from benchmarks.databases import fresh_database
from benchmarks.draining import drained, prepared
from benchmarks.measuring import interleaved
from benchmarks.results import Result, Target, at_least, beside
from benchmarks.waiting import Backlog, run_on_rows
from deploy.local.resolve import Resolved
from outbox.broker import KafkaSettings
from outbox.broker.settings import Client
from outbox.relay.settings import EngineName, RelaySettings

ROWS: Final = 50_000
KEYS: Final = 2_000
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)
PAIRS: Final[Sequence[tuple[EngineName, Client]]] = [
    ("poll", "confluent"),
    ("cdc", "confluent"),
    ("poll", "kafka-python"),
]
TARGETS: Final[dict[tuple[EngineName, Client], Target]] = {
    ("poll", "confluent"): at_least(0.7),
    ("poll", "kafka-python"): at_least(0.9),
}


class Relays:
    """The relays of one database: each engine with each client, under a name and a prefix of its own."""

    def __init__(self, backlog: Backlog, bootstrap: str) -> None:
        self._backlog, self._bootstrap = backlog, bootstrap
        self._mark = uuid.uuid4().hex[:8]
        self.peaks_mib: dict[str, list[float]] = defaultdict(list)

    def kafka(self, client: Client) -> KafkaSettings:
        return KafkaSettings(self._bootstrap, client=client)

    def prepare(self, engine: EngineName, client: Client) -> None:
        """Make its cursor and slot."""
        prepared(self._backlog.dsn, self.kafka(client), self._settings(engine, client))

    def drain(self, engine: EngineName, client: Client) -> float:
        """Rows a second; the memory it took is noted."""
        name = contender(engine, client)
        rows = self._backlog.ready(name)
        found = drained(self._backlog.dsn, self.kafka(client), self._settings(engine, client), rows)
        self.peaks_mib[name].append(found.peak_mib)
        return found.rate

    def produce(self, client: Client) -> float:
        """Messages a second of the bare loop."""
        rows = self._backlog.ready(f"bare {client}")
        return producing.rate(self._backlog.dsn, self.kafka(client), f"bare{self._mark}", rows)

    def _settings(self, engine: EngineName, client: Client) -> RelaySettings:
        name = f"{engine}_{client.replace('-', '_')}"
        return RelaySettings(name=name, prefix=f"{name}{self._mark}", engine=engine)


def contender(engine: EngineName, client: Client) -> str:
    return f"{engine}, {client}"


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    warm_up = 0 if given.quick else 1
    with fresh_database(servers.address("postgres")) as dsn:
        relays = Relays(Backlog(dsn, given.rows, given.keys), servers.address("kafka"))
        pairs = [pair for pair in PAIRS if given.only in contender(*pair)]
        turns = {contender(*pair): partial(relays.drain, *pair) for pair in pairs}
        turns |= {f"bare {client}": partial(relays.produce, client) for _, client in pairs}
        for pair in pairs:
            relays.prepare(*pair)
        rates = interleaved(turns, given.rounds, warm_up)
    for engine, client in pairs:
        name = contender(engine, client)
        target = TARGETS.get((engine, client))
        yield beside(f"relay drain, {name}", rates, (name, f"bare {client}"), "rows/s", target)
    for pair in pairs:
        name = contender(*pair)
        yield Result(f"memory of the relay, {name}", "MiB", {"ours": relays.peaks_mib[name][warm_up:]})


def main() -> None:
    run_on_rows("relay", __doc__, measure, ROWS, KEYS)


if __name__ == "__main__":
    main()
