"""The relay's drain beside two Python outboxes, txoutbox and omni-box: ``python -m benchmarks.peer_relays``.

Each drains rows of 450 bytes from a table of its own to topics of 12 partitions on one Kafka (lz4, acknowledged by
all, idempotent), by turns, once with 200 keys and once with 50,000. The peers get fewer rows than ours, enough for
some seconds: what waits behind them only makes them slower. The first tenth of the rows warms up.

Needs the dependency group ``bench``, which ``make bench`` installs; omni-box wants Python 3.12, and is left out before.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Final

from benchmarks.databases import fresh_database
from benchmarks.measuring import interleaved, say
from benchmarks.peer_outboxes import PEERS, rate
from benchmarks.peers import installed, required
from benchmarks.relay import Relays, contender
from benchmarks.results import Result, at_least, beside
from benchmarks.running import options, run
from benchmarks.waiting import Backlog
from deploy.local.resolve import Resolved
from outbox.broker import KafkaSettings, Message, open_kafka

KEYS: Final = (200, 50_000)
ROWS: Final = 50_000
PEER_ROWS: Final = {"txoutbox": 12_000, "omni-box": 6_000}
OURS: Final = contender("poll", "confluent")


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    peers = [name for name, (module, _) in PEERS.items() if given.only in name and installed(module)]
    for name in PEERS.keys() - set(peers):
        say(f"left out: {name}")
    sizes = dict.fromkeys(peers, given.rows) if given.quick else {name: PEER_ROWS[name] for name in peers}
    for keys in given.keys:
        yield from compared(servers, given, keys, sizes)


def compared(servers: Resolved, given: argparse.Namespace, keys: int, sizes: Mapping[str, int]) -> Iterator[Result]:
    """All by turns, with so many keys."""
    bootstrap = servers.address("kafka")
    with databases(servers.address("postgres"), sizes) as dsns:
        relays = Relays(Backlog(dsns[OURS], given.rows, min(keys, given.rows)), bootstrap)
        relays.prepare("poll", "confluent")
        turns = {OURS: partial(relays.drain, "poll", "confluent")}
        for name, rows in sizes.items():
            turns[name] = partial(rate, name, dsns[name], bootstrap, topic(bootstrap, name), rows, keys)
        rates = interleaved(turns, given.rounds, warm_up=0 if given.quick else 1)
    for name in sizes:
        yield beside(f"relay drain, {keys:,} keys", rates, (OURS, name), "rows/s", at_least(10))


@contextmanager
def databases(server: str, peers: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """The DSN of each contender's own database, with its own tables."""
    with ExitStack() as stack:
        found = {OURS: stack.enter_context(fresh_database(server))}
        for name in peers:
            found[name] = stack.enter_context(fresh_database(server, migrated=False))
            PEERS[name][1].migrate(found[name])
        yield found


def topic(bootstrap: str, name: str) -> str:
    """A new topic with as many partitions as ours, made by a message."""
    made = f"{name}{uuid.uuid4().hex[:8]}"
    with closing(open_kafka(KafkaSettings(bootstrap))) as broker, closing(broker.producer()) as producer:
        producer.publish([Message(made, "first", b"")])
    return made


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"that wait for our relay ({ROWS:,})")
    parser.add_argument("--keys", type=int, nargs="+", default=KEYS, help="in as many tables of results (200, 50,000)")
    given = parser.parse_args()
    if given.quick:
        given.rows = 400
    required("txoutbox", "asyncpg", "aiokafka")
    run("peer_relays", ["postgres", "kafka"], measure, given)


if __name__ == "__main__":
    main()
