"""How long after COMMIT does a consumer of Kafka have an event? ``python -m benchmarks.latency``

Events of 450 bytes are committed at a fixed rate, each by a transaction of its own up to 500 a second and ten in a
transaction at 5,000. The relay is a process; so is the consumer, a plain one of confluent-kafka, whose clock is the
writer's (``time.monotonic``). By turns: both engines; Debezium and txoutbox, which wakes by LISTEN/NOTIFY, each as
quick as its settings make it (at the lower two rates); and, for what of it is Kafka's own, the same messages given to
a plain producer, with neither PostgreSQL nor a relay. Whose turn it is not is halted (SIGSTOP).

txoutbox is left out where it is not installed (``make bench`` does).
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psutil
import psycopg

from benchmarks import debezium, peer_outboxes
from benchmarks.arriving import WITHIN_S, Consumer, paced
from benchmarks.databases import fresh_database
from benchmarks.measuring import say
from benchmarks.peers import installed
from benchmarks.processes import processes
from benchmarks.results import QUANTILES, Result, Target, at_most, at_quantiles
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.broker.settings import KafkaSettings
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.relay.settings import EngineName

CATEGORY: Final = "order"
BATCHES: Final = {200: 1, 500: 1, 5_000: 10}
"""Events in a transaction, by events a second."""
PEER_RATES: Final = (200, 500)
TARGETS: Final[dict[int, dict[str, Target]]] = {
    200: {"p50": at_most(1.4), "p99": at_most(3.0)},
    500: {"p50": at_most(3.0), "p99": at_most(8.0)},
}
"""Milliseconds. At 200 they are what the peer txoutbox 0.2.2 was measured at on another day."""
NO_SLOWER: Final = dict.fromkeys(QUANTILES, at_most(1.0))
EVENTS: Final = {200: 400, 500: 750, 5_000: 6_000}
"""Of each turn, by events a second."""
QUICK_SHARE: Final = 10
WARM_SHARE: Final = 5
"""One event in so many, the first of each turn, only warms up: what was halted has gone cold."""
TEXT: Final = "Forty words of an order that somebody has placed. " * 8
WARM: Final = 200

Write = Callable[[int, int, int], Mapping[str, float]]
"""Writes so many events, at a rate, so many at once; the moment of each, by id."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way from a writer to a topic."""

    write: Write
    topic: str
    processes: Sequence[psutil.Process] = ()
    """Those that relay."""
    rates: Collection[int] = tuple(BATCHES)

    def halt(self) -> None:
        for process in self.processes:
            process.suspend()

    def go_on(self) -> None:
        for process in self.processes:
            process.resume()


@contextmanager
def ours(engine: EngineName, servers: Resolved) -> Iterator[Contender]:
    with fresh_database(servers.address("postgres")) as dsn:
        prefix = f"latency{uuid.uuid4().hex[:8]}"
        settings = {
            "OUTBOX_MODE": "servers",
            "OUTBOX_PREFIX": prefix,
            "OUTBOX_DATABASE__DSN": dsn,
            "OUTBOX_KAFKA__BOOTSTRAP": servers.address("kafka"),
            "OUTBOX_RELAY__ENGINE": engine,
        }
        with processes(settings, [["relay"]]) as relays, psycopg.connect(dsn) as connection:
            yield Contender(partial(_committed, connection), f"{prefix}.{CATEGORY}", relays)


@contextmanager
def with_debezium(servers: Resolved) -> Iterator[Contender]:
    """The same log; no message waits for others."""
    with (
        fresh_database(servers.address("postgres")) as dsn,
        debezium.prepared(dsn, servers.address("kafka"), poll_ms=1, linger_ms=0) as connect,
        connect.running() as pid,
        psycopg.connect(dsn) as connection,
    ):
        connect.wait(pid, connect.streams)
        yield Contender(partial(_committed, connection), connect.topic, [psutil.Process(pid.number)], PEER_RATES)


@contextmanager
def with_txoutbox(servers: Resolved) -> Iterator[Contender]:
    peer, topic = peer_outboxes.TxOutbox(), f"latency{uuid.uuid4().hex[:8]}"
    _create(servers.address("kafka"), topic)
    with fresh_database(servers.address("postgres"), migrated=False) as dsn:
        peer.migrate(dsn, notify=True)
        with peer.running(dsn, servers.address("kafka")) as relay, psycopg.connect(dsn) as connection:
            yield Contender(partial(_inserted, connection, topic), topic, [relay], PEER_RATES)


@contextmanager
def no_relay(servers: Resolved) -> Iterator[Contender]:
    from confluent_kafka import Producer

    bootstrap, topic = servers.address("kafka"), f"latency{uuid.uuid4().hex[:8]}"
    _create(bootstrap, topic)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0})
    yield Contender(partial(_produced, producer, topic), topic)


OURS: Final = ("poll", "cdc")
PEERS: Final = ("txoutbox", "Debezium")
ALONE: Final = "no relay"
CONTENDERS: Final[Mapping[str, Callable[[Resolved], AbstractContextManager[Contender]]]] = {
    "poll": partial(ours, "poll"),
    "cdc": partial(ours, "cdc"),
    "txoutbox": with_txoutbox,
    "Debezium": with_debezium,
    ALONE: no_relay,
}


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    names = [name for name in CONTENDERS if given.only in name]
    if "txoutbox" in names and not installed("txoutbox"):
        say("left out: txoutbox")
        names.remove("txoutbox")
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(CONTENDERS[name](servers)) for name in names}
        found = rounds(contenders, servers.address("kafka"), given)
    for rate in BATCHES:
        question = f"commit to a consumer of Kafka, {rate:,}/s"
        for name in names:
            if each := found.get((name, rate)):
                targets = TARGETS.get(rate, {}) if name in OURS else {}
                yield from at_quantiles(f"{question}, {name}", "ms", {"ours": each}, targets)
        for name in OURS:
            for peer in PEERS:
                if (name, rate) in found and (peer, rate) in found:
                    pair = {"ours": found[name, rate], peer: found[peer, rate]}
                    yield from at_quantiles(f"{question}, {name} beside {peer}", "ms", pair, NO_SLOWER)


def rounds(
    contenders: Mapping[str, Contender], bootstrap: str, given: argparse.Namespace
) -> dict[tuple[str, int], list[list[float]]]:
    """Milliseconds of each event, by contender and rate, round by round. The first round only warms up: Kafka
    compiles itself while it works."""
    warm_up, share = (0, QUICK_SHARE) if given.quick else (1, 1)
    found: dict[tuple[str, int], list[list[float]]] = {}
    with ExitStack() as stack:
        consumers = {name: stack.enter_context(Consumer(bootstrap, one.topic)) for name, one in contenders.items()}
        for name, one in contenders.items():
            consumers[name].take(one.write(WARM, 200, 1))
            stack.callback(one.go_on)
            one.halt()
        turns = list(contenders.items())
        for _ in range(warm_up + given.rounds):
            for rate, batch in BATCHES.items():
                for name, one in turns:
                    if rate not in one.rates:
                        continue
                    one.go_on()
                    written = one.write(EVENTS[rate] // share, rate, batch)
                    seen = consumers[name].take(written)
                    one.halt()
                    counted = list(written.items())[len(written) // WARM_SHARE :]
                    found.setdefault((name, rate), []).append([(seen[id_] - at) * 1e3 for id_, at in counted])
            turns.reverse()
    return {of: each[warm_up:] for of, each in found.items()}


def _committed(connection: psycopg.Connection[Any], count: int, rate: int, batch: int) -> dict[str, float]:
    """Commit ``count`` events at the rate; when each one's commit returned, by id."""
    committed: dict[str, float] = {}
    stream = uuid.uuid4().hex
    for number in paced(count, rate, batch):
        events = [NewEvent("entity.upserted", _data(number), uuid.uuid4()) for _ in range(batch)]
        append(connection, f"{CATEGORY}-{stream}{number % 100}", events)
        connection.commit()
        committed |= dict.fromkeys((str(event.id) for event in events), time.monotonic())
    return committed


def _inserted(connection: psycopg.Connection[Any], topic: str, count: int, rate: int, batch: int) -> dict[str, float]:
    """The same into txoutbox's table, as many keys."""
    inserted: dict[str, float] = {}
    for number in paced(count, rate, batch):
        id_ = str(uuid.uuid4())
        peer_outboxes.TxOutbox.insert(connection, topic, str(number % 100), TEXT.encode(), id_)
        connection.commit()
        inserted[id_] = time.monotonic()
    return inserted


def _create(bootstrap: str, topic: str) -> None:
    """A topic with as many partitions as ours has."""
    from confluent_kafka.admin import AdminClient, NewTopic

    new = NewTopic(topic, KafkaSettings(bootstrap).partitions)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([new])[topic].result(WITHIN_S)


def _produced(producer: Any, topic: str, count: int, rate: int, batch: int) -> dict[str, float]:
    """Give the producer as many messages of the same size; when each one was given to it, by id."""
    given: dict[str, float] = {}
    for number in paced(count, rate, batch):
        for key in range(number, number + batch):
            id_ = str(uuid.uuid4())
            given[id_] = time.monotonic()
            producer.produce(topic, TEXT, str(number % 100 + key - number), headers={"id": id_})
        producer.poll(0)
    producer.flush(WITHIN_S)
    return given


def _data(number: int) -> dict[str, Any]:
    return {"kind": "order", "name": f"order {number}", "text": TEXT, "properties": {"line": number}}


def main() -> None:
    run("latency", ["postgres", "kafka"], measure, options(__doc__).parse_args())


if __name__ == "__main__":
    main()
