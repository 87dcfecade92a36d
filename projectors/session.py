"""A projector's session: one consumer on one generation; from messages to the store, batch by batch.

However it ends, its checkpoint is behind what the store holds, never ahead; what it reads twice, the version guard
makes harmless. A session that is behind folds the next batch while the store takes the one before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace

from outbox.broker.protocol import Broker, Consumer, Delivery, TopicPartition
from outbox.codec import Registry
from outbox.database import Connection, check_migrated, connect, first_line, halting
from outbox.envelope import read_event
from outbox.errors import BrokerUnavailable, InvalidEvent
from outbox.event import Event, category_of
from outbox.log.read import read_below, read_stream
from outbox.logs import logger
from projectors import ledger, placement
from projectors.decoding import Deferring
from projectors.folding import Failure, Folding
from projectors.horizon import Horizon
from projectors.late import Doubts, Late, newest_of
from projectors.pipeline import Pipeline, Plan, Ready
from projectors.resilience import Pace, Resilience, resilient
from projectors.sinks.protocol import Sink, is_conditional
from projectors.skipping import skipping
from projectors.witness import Witness

log = logger("outbox.projector")

OpenSink = Callable[[], AbstractContextManager[Sink]]
OpenBroker = Callable[[], Broker]


@dataclass(frozen=True, slots=True)
class Stations:
    """What a projector is connected to; opened anew after each failure."""

    dsn: str
    broker: OpenBroker
    sink: OpenSink
    sink_in: Callable[[str], AbstractContextManager[Sink]]
    """Opens the projector's sink on another store than the one that the settings name."""
    registry: Registry
    resilience: Resilience
    group_prefix: str = "outbox"
    witness: Witness | None = field(default_factory=Witness)
    """What the projector knows of the log by itself; None while a reconcile works on a log that went back."""
    late_s: float = 1.0
    """A write that took longer may have come when its partitions were another's already (:mod:`projectors.late`)."""
    poll_s: float = 0.5
    rest_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll gave, folded. ``left_out``: the parked streams among it."""

    deliveries: Sequence[Delivery]
    left_out: frozenset[str]
    ready: Ready

    @property
    def size(self) -> int:
        """Messages, or what they ask of the store, if that is more: a message may stand for many records."""
        return max(len(self.deliveries), len(self.ready.changes))

    def without(self, partitions: Iterable[TopicPartition]) -> Batch:
        """The same batch without what came from some partitions."""
        gone = frozenset(partitions)
        kept = [d for d in self.deliveries if TopicPartition(d.topic, d.partition) not in gone]
        lost = {d.key for d in self.deliveries} - {d.key for d in kept}
        return replace(self, deliveries=kept, left_out=self.left_out - lost, ready=self.ready.without(lost))


class Session:
    """One consumer on one generation, until something fails or the generation changes.

    Raises :class:`~outbox.errors.StoreChanged` for a generation that is in another store than the plan's.
    """

    def __init__(
        self,
        plan: Plan,
        stations: Stations,
        generation: str,
        stop: threading.Event,
        stack: ExitStack,
        pace: Pace | None = None,
        doubts: Doubts | None = None,
    ) -> None:
        self._stations = stations
        self._generation = generation
        self._registry = Deferring(stations.registry)
        self._log = opened(stack, stations.dsn)
        self._state = opened(stack, stations.dsn, **halting())
        placement.check(self._state, plan.name, generation, plan.store)
        self._plan, self._skipping = skipping(self._state, plan)
        store = stack.enter_context(stations.sink())
        self._conditional = is_conditional(store)
        if not self._conditional:
            newest = newest_of(stations.dsn, self._plan, stations.registry)
            store = Late(store, newest, stations.late_s, doubts=doubts)
        sink = resilient(store, plan.name, stations.resilience, stop, pace)
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
        self._batch: Batch | None = None
        self._room = stations.resilience.batch
        self._weight = 1.0
        self._writer = stack.enter_context(ThreadPoolExecutor(1, "outbox-write"))

    def step(self) -> int:
        """Take one batch through; returns its number of messages.

        1. Poll, see that nothing is missing and nothing is too much (:mod:`projectors.horizon`), and fold all but the
           events of parked streams. A crash leaves nothing.
        2. Apply (:meth:`Pipeline.apply`). Behind a backlog the next batch is taken and folded meanwhile, on the states
           that this one comes to. A crash leaves any part applied; it is read again.
        3. Checkpoint in PostgreSQL, in one transaction with a look whether what was left out is still parked.
           A crash before it: the batch comes again. After it: nothing to do.
        4. Tell the broker, for its own tools.

        Members of a group change places while they poll, so with the next batch it may turn out that another writes
        what is in hand. A store that compares and sets can be written by both. Any other is only written what this
        member still holds after that poll: there the poll comes before 2.
        """
        batch = self._batch or self._fold(self._poll(self._stations.poll_s))
        self._batch = None
        if batch.size < self._stations.resilience.batch:
            if batch.deliveries:
                self._finish(batch, self._pipeline.write(batch.ready))
            return len(batch.deliveries)
        if self._conditional:
            writing = self._writer.submit(self._pipeline.write, batch.ready)
            batch, coming = self._look_ahead(batch)
        else:
            batch, coming = self._look_ahead(batch)
            writing = self._writer.submit(self._pipeline.write, batch.ready)
        following = self._fold(coming, after=batch) if coming else None
        parked = self._finish(batch, writing.result())
        self._batch = self._fold(coming) if parked and coming else following
        return len(batch.deliveries)

    def lag(self) -> int:
        """Messages published and not applied."""
        return ledger.lag(self._state, self._plan.name, self._generation, self._plan.topics)

    def serves(self) -> bool:
        """Whether this session's generation is (still) the serving one."""
        return ledger.serving(self._state, self._plan.name) == self._generation

    def redrive(self) -> int:
        """Try the parked streams that somebody asked for again; returns how many.

        Each is folded from its beginning to its end (:meth:`Pipeline.apply_whole`), so that whatever its parking left
        out is written, even if the projection has been mended. The dead letter is locked
        meanwhile: a member that has left events of the stream out waits with its checkpoint, and then sees
        that it must apply them.
        """
        tried = 0
        asked = True
        while asked:
            with self._state.transaction():
                stream = ledger.take_retry(self._state, self._plan.name, self._generation)
                if stream is not None:
                    self._state.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # the store may take long
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

    def _poll(self, timeout_s: float) -> Sequence[Delivery]:
        window = max(1, int(self._room / self._weight))
        deliveries = self._consumer.poll(window, timeout_s)
        self._make_room(len(deliveries), window)
        self._notice_assignment()
        if deliveries:
            self._horizon.check(deliveries)
        return deliveries

    def _make_room(self, taken: int, window: int) -> None:
        """Take more at once the longer the backlog lasts; begin small, since the store waits for the first fold."""
        resilience = self._stations.resilience
        if taken == window:
            self._room = min(2 * self._room, resilience.messages)
        elif not taken:
            self._room = resilience.batch

    def _look_ahead(self, batch: Batch) -> tuple[Batch, Sequence[Delivery]]:
        """What this member still holds of the batch in hand (the rest is as if it had never come), and what comes after
        it."""
        coming: Sequence[Delivery] = ()
        with suppress(BrokerUnavailable):  # said by the next poll; what is in hand can be written
            coming = self._poll(0)
        gone = {TopicPartition(d.topic, d.partition) for d in batch.deliveries} - self._assigned
        return (batch.without(gone) if gone else batch), coming

    def _fold(self, deliveries: Sequence[Delivery], after: Batch | None = None) -> Batch:
        left_out = frozenset({d.key for d in deliveries} & self._parked)
        events = self._events(d for d in deliveries if d.key not in left_out)
        batch = Batch(deliveries, left_out, self._pipeline.fold(events, after=after.ready if after else None))
        if deliveries:
            self._weight = batch.size / len(deliveries)
        return batch

    def _finish(self, batch: Batch, refused: Mapping[str, str]) -> bool:
        """All that follows a batch's write; returns whether streams of it were parked."""
        if not batch.deliveries:
            return False
        parked = self._pipeline.finish(batch.ready, refused)
        offsets = {TopicPartition(d.topic, d.partition): d.offset + 1 for d in batch.deliveries}
        left_out = set(batch.left_out)
        while freed := self._checkpoint(offsets, left_out):
            left_out -= freed
            self._parked -= freed
            self._skipping.load(self._state, self._plan.name)  # another may have been told to give an event up
            self._pipeline.apply(self._events(d for d in batch.deliveries if d.key in freed))
        self._horizon.applied(batch.deliveries)
        self._consumer.commit(offsets)
        return parked

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

    def _events(self, deliveries: Iterable[Delivery]) -> list[Event]:
        return [event for d in deliveries if (event := self._event(d)) is not None]

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
        if category_of(stream) in self._plan.projection.categories:  # any key may be that of a message that is no event
            self._pipeline.apply_whole(stream, read_stream(self._log, stream, self._registry))
        if stream not in self._parked:
            ledger.unpark(self._state, self._plan.name, self._generation, stream)
            log.info("no longer parked", projector=self._plan.name, stream=stream)

    def _park(self, failure: Failure) -> None:
        self._skipping.park(self._state, self._plan.name, self._generation, failure)
        self._parked.add(failure.stream)


def opened(stack: ExitStack, dsn: str, **settings: str) -> Connection:
    """A connection to a migrated database, closed with the stack."""
    connection = connect(dsn, autocommit=True, **settings)
    stack.callback(connection.close)
    check_migrated(connection)
    return connection
