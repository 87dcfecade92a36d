"""The projector's process: consume, apply, checkpoint; through outages of its store, broker and database.

A projector is one thread with one consumer, one sink and two connections. However it ends, its checkpoint
is behind what the store holds, never ahead; what it reads twice, the version guard makes harmless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog

from outbox.broker.protocol import Broker, Consumer, Delivery, TopicPartition
from outbox.codec import Registry
from outbox.database import Connection, check_migrated, connect, first_line
from outbox.envelope import read_event
from outbox.errors import BrokerUnavailable, DatabaseError, InvalidEvent, StoreUnavailable
from outbox.event import Event
from outbox.log.read import read_below, read_stream
from projectors import ledger
from projectors.folding import Failure, Folding
from projectors.ledger import DeadLetter
from projectors.pipeline import Pipeline, Plan
from projectors.resilience import Resilience, resilient
from projectors.sinks.protocol import Sink

log = structlog.get_logger("outbox.projector")

OpenSink = Callable[[], AbstractContextManager[Sink]]
OpenBroker = Callable[[], Broker]

HEARTBEAT_S: Final = 5.0
LOOK_S: Final = 0.5
"""How often a projector looks whether another generation serves, and whether a retry was asked for."""


@dataclass(frozen=True, slots=True)
class Stations:
    """What a projector is connected to; opened anew after each failure."""

    dsn: str
    broker: OpenBroker
    sink: OpenSink
    registry: Registry
    resilience: Resilience
    group_prefix: str = "outbox"
    poll_s: float = 0.2
    rest_s: float = 1.0


class Session:
    """One consumer on one generation, until something fails or the generation changes."""

    def __init__(
        self, plan: Plan, stations: Stations, generation: str, stop: threading.Event, stack: ExitStack
    ) -> None:
        self._plan = plan
        self._stations = stations
        self._generation = generation
        self._log = _opened(stack, stations.dsn)
        self._state = _opened(stack, stations.dsn)
        sink = resilient(stack.enter_context(stations.sink()), plan.name, stations.resilience, stop)
        sink.prepare(generation)
        self._folding = Folding(plan.projection, lambda below: read_below(self._log, below, stations.registry))
        self._pipeline = Pipeline(plan, sink, generation, self._folding, self._park)
        self._parked = {d.stream for d in ledger.dead_letters(self._state, plan.name, generation)}
        broker = stations.broker()
        stack.callback(broker.close)
        self._consumer = self._join(broker)
        stack.callback(self._consumer.close)
        self._assigned: frozenset[TopicPartition] = frozenset()

    def step(self) -> int:
        """Take one batch through; returns its number of messages.

        1. Poll. A crash leaves nothing.
        2. Apply (:meth:`Pipeline.apply`). A crash leaves any part applied; it is read again.
        3. Checkpoint in PostgreSQL. A crash before it: the batch comes again. After it: nothing to do.
        4. Tell the broker, for its own tools.
        """
        deliveries = self._consumer.poll(self._stations.resilience.batch, self._stations.poll_s)
        self._notice_assignment()
        if not deliveries:
            return 0
        self._pipeline.apply(self._events(deliveries))
        offsets = {TopicPartition(d.topic, d.partition): d.offset + 1 for d in deliveries}
        ledger.save_checkpoints(self._state, self._plan.name, self._generation, offsets)
        self._consumer.commit(offsets)
        return len(deliveries)

    def lag(self) -> int:
        """Messages published and not applied."""
        return ledger.lag(self._state, self._plan.name, self._generation, self._plan.topics)

    def serves(self) -> bool:
        """Whether this session's generation is (still) the serving one."""
        return ledger.serving(self._state, self._plan.name) == self._generation

    def redrive(self) -> int:
        """Try the parked streams that somebody asked for, each from its first event not applied, in order."""
        asked = ledger.asked_retries(self._state, self._plan.name, self._generation)
        for stream, version in asked.items():
            self._folding.forget()
            events = list(read_stream(self._log, stream, self._stations.registry, after=max(version - 1, 0)))
            self._parked.discard(stream)
            self._pipeline.apply(events)
            if stream not in self._parked:
                ledger.unpark(self._state, self._plan.name, self._generation, stream)
        return len(asked)

    def healthy(self, health: str = "ok") -> None:
        """Say how it goes."""
        ledger.note_health(self._state, self._plan.name, self._plan.store, health)

    def _join(self, broker: Broker) -> Consumer:
        group = f"{self._stations.group_prefix}.{self._plan.name}.{self._generation}"
        return broker.consumer(group, self._plan.topics, self._start)

    def _start(self, partition: TopicPartition) -> int | None:
        # Asked by the broker's client at each assignment: the checkpoint as of now, not as of when we began.
        return ledger.checkpoints(self._state, self._plan.name, self._generation).get(partition)

    def _notice_assignment(self) -> None:
        assigned = self._consumer.assignment()
        if assigned - self._assigned:
            # Another member may have applied events of these partitions meanwhile: cached states are too old.
            self._folding.forget()
        self._assigned = assigned

    def _events(self, deliveries: Sequence[Delivery]) -> list[Event]:
        events: list[Event] = []
        for delivery in deliveries:
            if delivery.key in self._parked:
                continue
            try:
                events.append(read_event(delivery, self._stations.registry))
            except InvalidEvent as error:
                version = delivery.headers.get("version", b"0").decode(errors="replace")
                type_ = delivery.headers.get("type", b"").decode(errors="replace")
                number = int(version) if version.isdigit() else 0
                self._park(Failure(delivery.key, number, type_, first_line(error)))
        return [e for e in events if e.stream not in self._parked]

    def _park(self, failure: Failure) -> None:
        letter = DeadLetter(
            self._plan.name, self._generation, failure.stream, failure.version, failure.type, failure.error, 1
        )
        ledger.park(self._state, letter)
        self._parked.add(failure.stream)


class Runner:
    """Runs one projector until told to stop."""

    def __init__(self, plan: Plan, stations: Stations, bootstrap: Callable[[threading.Event], str]) -> None:
        self._plan = plan
        self._stations = stations
        self._bootstrap = bootstrap

    def run(self, stop: threading.Event) -> None:
        """Serve the serving generation, building the first one if there is none.

        An outage (of the store, the broker, the database) ends the session, never the process: the projector
        rests, then opens everything anew and goes on from its checkpoint.
        """
        rest_s = self._stations.rest_s
        while not stop.is_set():
            try:
                self._session(stop)
                rest_s = self._stations.rest_s
            except (StoreUnavailable, BrokerUnavailable, DatabaseError, psycopg.Error) as error:
                log.warning("will try again", projector=self._plan.name, error=first_line(error), in_s=rest_s)
                self._say(first_line(error))
                stop.wait(rest_s)
                rest_s = min(rest_s * 2, self._stations.rest_s * 8)

    def _session(self, stop: threading.Event) -> None:
        generation = self._bootstrap(stop)
        if stop.is_set():
            return
        with ExitStack() as stack:
            session = Session(self._plan, self._stations, generation, stop, stack)
            log.info("projecting", projector=self._plan.name, generation=generation, store=self._plan.store)
            looked = said = 0.0
            while not stop.is_set():
                session.step()
                now = time.monotonic()
                if now - looked > LOOK_S:
                    looked = now
                    session.redrive()
                    if not session.serves():
                        return
                if now - said > HEARTBEAT_S:
                    said = now
                    session.healthy()

    def _say(self, health: str) -> None:
        try:
            with ExitStack() as stack:
                ledger.note_health(_opened(stack, self._stations.dsn), self._plan.name, self._plan.store, health)
        except (DatabaseError, psycopg.Error) as error:
            log.warning("cannot write its health", projector=self._plan.name, error=first_line(error))


def _opened(stack: ExitStack, dsn: str) -> Connection:
    connection = connect(dsn)
    stack.callback(connection.close)
    check_migrated(connection)
    return connection
