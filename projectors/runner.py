"""The projector's process: consume, apply, checkpoint; through outages of its store, broker and database.

A projector is one thread with one consumer, one sink and two connections. However it ends, its checkpoint
is behind what the store holds, never ahead; what it reads twice, the version guard makes harmless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import psycopg

from outbox.broker.protocol import Broker, Consumer, Delivery, TopicPartition
from outbox.codec import Registry
from outbox.database import Connection, check_migrated, connect, first_line
from outbox.envelope import read_event
from outbox.errors import (
    BrokerError,
    BrokerUnavailable,
    DatabaseError,
    InvalidEvent,
    MemberFenced,
    StoreError,
    WaitTimeout,
)
from outbox.event import Event
from outbox.log.identity import check_identity
from outbox.log.read import read_below, read_stream
from outbox.logs import logger
from projectors import ledger
from projectors.decoding import Deferring
from projectors.folding import Failure, Folding
from projectors.horizon import Horizon
from projectors.late import Late, newest_of
from projectors.ledger import DeadLetter
from projectors.pipeline import Pipeline, Plan
from projectors.resilience import Pace, Resilience, resilient
from projectors.sinks.protocol import Sink
from projectors.skipping import skipping
from projectors.witness import Witness

log = logger("outbox.projector")

OpenSink = Callable[[], AbstractContextManager[Sink]]
OpenBroker = Callable[[], Broker]

HEARTBEAT_S: Final = 5.0
LOOK_S: Final = 0.5
"""How often a projector looks whether another generation serves, and whether a retry was asked for."""

REST_FACTOR_MAX: Final = 8
"""Rests between sessions that fail double up to this many times the first."""

POLLS_FAILED_MAX: Final = 10
"""Polls in a row that may fail before the consumer is opened anew."""

REDRIVE_PAGE: Final = 1_000
"""Events of a parked stream applied at a time."""


@dataclass(frozen=True, slots=True)
class Stations:
    """What a projector is connected to; opened anew after each failure."""

    dsn: str
    broker: OpenBroker
    sink: OpenSink
    registry: Registry
    resilience: Resilience
    group_prefix: str = "outbox"
    witness: Witness | None = field(default_factory=Witness)
    """What the projector knows of the log by itself; None while a reconcile works on a log that went back."""
    late_s: float = 1.0
    """A write that took longer may have come when its partitions were another's already (:mod:`projectors.late`)."""
    poll_s: float = 0.2
    rest_s: float = 1.0


class Session:
    """One consumer on one generation, until something fails or the generation changes."""

    def __init__(
        self,
        plan: Plan,
        stations: Stations,
        generation: str,
        stop: threading.Event,
        stack: ExitStack,
        pace: Pace | None = None,
    ) -> None:
        self._stations = stations
        self._generation = generation
        self._registry = Deferring(stations.registry)
        self._log = opened(stack, stations.dsn)
        self._state = opened(stack, stations.dsn)
        self._plan, self._skipping = skipping(self._state, plan)
        newest = newest_of(self._log, self._plan, stations.registry)
        late = Late(stack.enter_context(stations.sink()), newest, stations.late_s)
        sink = resilient(late, plan.name, stations.resilience, stop, pace)
        sink.prepare(generation)
        self._folding = Folding(self._plan.projection, lambda below: read_below(self._log, below, self._registry))
        self._pipeline = Pipeline(self._plan, sink, generation, self._folding, self._park)
        broker = stations.broker()
        stack.callback(broker.close)
        self._consumer = self._join(broker)
        stack.callback(self._consumer.close)
        self._horizon = Horizon(self._plan, generation, broker, self._log, self._state, stations.witness)
        if stations.witness is not None:
            stack.callback(stations.witness.keep)
        self._parked: set[str] = ledger.parked(self._state, plan.name, generation)
        self._horizon.open(self._registry, self._pipeline.apply, self._parked, stop)
        self._assigned: frozenset[TopicPartition] = frozenset()

    def step(self) -> int:
        """Take one batch through; returns its number of messages.

        1. Poll, and see that nothing is missing and nothing is too much (:mod:`projectors.horizon`). A crash
           leaves nothing.
        2. Apply (:meth:`Pipeline.apply`), all but the events of parked streams. A crash leaves any part
           applied; it is read again.
        3. Checkpoint in PostgreSQL, in one transaction with a look whether what was left out is still parked.
           A crash before it: the batch comes again. After it: nothing to do.
        4. Tell the broker, for its own tools.
        """
        deliveries = self._consumer.poll(self._stations.resilience.messages, self._stations.poll_s)
        self._notice_assignment()
        if not deliveries:
            return 0
        self._horizon.check(deliveries)
        left_out = {d.key for d in deliveries} & self._parked
        self._apply(d for d in deliveries if d.key not in left_out)
        offsets = {TopicPartition(d.topic, d.partition): d.offset + 1 for d in deliveries}
        while freed := self._checkpoint(offsets, left_out):
            left_out -= freed
            self._parked -= freed
            self._apply(d for d in deliveries if d.key in freed)
        self._horizon.applied(deliveries)
        self._consumer.commit(offsets)
        return len(deliveries)

    def lag(self) -> int:
        """Messages published and not applied."""
        return ledger.lag(self._state, self._plan.name, self._generation, self._plan.topics)

    def serves(self) -> bool:
        """Whether this session's generation is (still) the serving one."""
        return ledger.serving(self._state, self._plan.name) == self._generation

    def redrive(self) -> int:
        """Try the parked streams that somebody asked for again; returns how many.

        Each is folded from its beginning, so that whatever its parking left out is written, and its changes
        apply at an equal version too, since the projection may have been mended. The dead letter is locked
        meanwhile: a member that has left events of the stream out waits with its checkpoint, and then sees
        that it must apply them.
        """
        tried = 0
        asked = True
        while asked:
            with self._state.transaction():
                stream = ledger.take_retry(self._state, self._plan.name, self._generation)
                if stream is not None:
                    self._redrive(stream)
                    tried += 1
                asked = stream is not None
        return tried

    def look(self) -> None:
        """See whether broker and log are still what they were, without waiting for a message to tell."""
        self._horizon.look()

    def healthy(self, health: str = "ok") -> None:
        """Say how it goes."""
        ledger.note_health(self._state, self._plan.name, self._plan.store, health)

    def _join(self, broker: Broker) -> Consumer:
        group = f"{self._stations.group_prefix}.{self._plan.name}.{self._generation}"
        return broker.consumer(group, self._plan.topics, self._start)

    def _start(self, partition: TopicPartition) -> int | None:
        # Asked by the broker's client at each assignment: the checkpoint as of now, not as of when we began.
        at = ledger.checkpoints(self._state, self._plan.name, self._generation).get(partition)
        return self._horizon.starts(partition, at)

    def _notice_assignment(self) -> None:
        """With new partitions come the streams that other members have parked.

        Cached states stay: one that others have taken further shows a gap at its next event, and a gap is
        filled from the log.
        """
        assigned = self._consumer.assignment()
        if assigned - self._assigned:
            self._parked = ledger.parked(self._state, self._plan.name, self._generation)
            self._skipping.load(self._state, self._plan.name)
        self._assigned = assigned

    def _apply(self, deliveries: Iterable[Delivery]) -> None:
        self._pipeline.apply([event for d in deliveries if (event := self._event(d)) is not None])

    def _event(self, delivery: Delivery) -> Event | None:
        """The delivery's event; None if it is none, which is written down and changes nothing."""
        try:
            return read_event(delivery, self._registry)
        except InvalidEvent as error:
            reason = first_line(error)
            log.warning("not an event", projector=self._plan.name, key=delivery.key, error=reason)
            ledger.note_stray(self._state, self._plan.name, self._generation, delivery.key, reason)
            return None

    def _checkpoint(self, offsets: Mapping[TopicPartition, int], left_out: set[str]) -> set[str]:
        """Save the checkpoint, unless streams that were left out are parked no longer: returns those."""
        with self._state.transaction():
            held = ledger.hold_parked(self._state, self._plan.name, self._generation, left_out) if left_out else set()
            if freed := left_out - held:
                return freed
            known = self._horizon.incarnations
            ledger.save_checkpoints(self._state, self._plan.name, self._generation, offsets, known)
        return set()

    def _redrive(self, stream: str) -> None:
        self._skipping.load(self._state, self._plan.name)
        self._folding.forget(stream)
        self._parked.discard(stream)
        events = read_stream(self._log, stream, self._registry)
        while stream not in self._parked and (page := list(islice(events, REDRIVE_PAGE))):
            self._pipeline.apply(page, repair=True)
        if stream not in self._parked:
            ledger.unpark(self._state, self._plan.name, self._generation, stream)
            log.info("no longer parked", projector=self._plan.name, stream=stream)

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
        self._pace = Pace(stations.resilience)

    def run(self, stop: threading.Event) -> None:
        """Serve the serving generation, building the first one if there is none.

        An outage (of the store, the broker, the database) ends the session, never the process: the projector
        rests, then opens everything anew and goes on from its checkpoint. Wrong settings and errors of our
        own code do end it, and so does a process that has taken its name
        (:class:`~outbox.errors.MemberFenced`): joining again would put that one out in its turn.
        """
        rest_s = self._stations.rest_s
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._session(stop)
            except MemberFenced:
                raise
            except (StoreError, BrokerError, DatabaseError, WaitTimeout, psycopg.Error) as error:
                if time.monotonic() - began > self._stations.rest_s * REST_FACTOR_MAX:
                    rest_s = self._stations.rest_s
                log.warning("will try again", projector=self._plan.name, error=first_line(error), in_s=rest_s)
                self._say(first_line(error))
                stop.wait(rest_s)
                rest_s = min(rest_s * 2, self._stations.rest_s * REST_FACTOR_MAX)

    def _session(self, stop: threading.Event) -> None:
        with ExitStack() as stack:  # before a first build, which would load over what a lost log has left in the store
            check_identity(opened(stack, self._stations.dsn))
        generation = self._bootstrap(stop)
        if stop.is_set():
            return
        with ExitStack() as stack:
            session = Session(self._plan, self._stations, generation, stop, stack, self._pace)
            log.info("projecting", projector=self._plan.name, generation=generation, store=self._plan.store)
            looked = spoken = -HEARTBEAT_S
            while not stop.is_set():
                self._step(session, stop)
                now = time.monotonic()
                if now - looked > LOOK_S:
                    looked = now
                    session.look()
                    session.redrive()
                    if not session.serves():
                        return
                if now - spoken > HEARTBEAT_S:
                    spoken = now
                    session.healthy()

    def _step(self, session: Session, stop: threading.Event) -> None:
        """One step. While the broker is away the member stays, for a while: rejoining costs a session time-out."""
        for failed in range(1, POLLS_FAILED_MAX + 1):
            try:
                session.step()
                return
            except BrokerUnavailable as error:
                if failed == POLLS_FAILED_MAX:
                    raise
                log.warning("the broker is away", projector=self._plan.name, error=first_line(error))
                session.healthy(first_line(error))
                if stop.wait(self._stations.rest_s):
                    return

    def _say(self, health: str) -> None:
        try:
            with ExitStack() as stack:
                ledger.note_health(opened(stack, self._stations.dsn), self._plan.name, self._plan.store, health)
        except (DatabaseError, psycopg.Error) as error:
            log.warning("cannot write its health", projector=self._plan.name, error=first_line(error))


def opened(stack: ExitStack, dsn: str) -> Connection:
    """A connection to a migrated database, closed with the stack."""
    connection = connect(dsn)
    stack.callback(connection.close)
    check_migrated(connection)
    return connection
