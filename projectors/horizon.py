"""Is what the broker gives all there is, and no more than there is?

Less: a topic was deleted, emptied, made again, or has expired what a projector that was away had not read. The
offsets tell: the broker's against the checkpoint's. What is missing is filled from the log, which has it all.

More: events that the log does not have, because PostgreSQL was restored to an earlier moment. Everything stops
(see :mod:`outbox.log.identity`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from outbox.broker.local import LocalBroker
from outbox.broker.protocol import Broker, Delivery, Range, TopicPartition
from outbox.codec import Registry
from outbox.database import Connection
from outbox.errors import BrokerUnavailable, MessagesLost
from outbox.event import Event
from outbox.log.identity import (
    LOST,
    Identity,
    accept_timeline,
    check_identity,
    event_ids,
    halt,
    read_identity,
    unknown_event,
    went_back,
)
from outbox.log.read import read_by_stream
from outbox.logs import logger
from projectors.pipeline import Plan
from projectors.witness import Witness

log = logger("outbox.projector")

LOOK_EVERY_S: Final = 5.0
"""How often a quiet projector asks the broker what it holds: so long an emptied topic may go unnoticed."""

PAGE: Final = 1_000
"""Events filled in at a time."""

_PLACES: Final = """
SELECT topic, partition, "offset", incarnation FROM outbox.checkpoint WHERE projector = %s AND generation = %s
"""
_PUBLISHED: Final = 'SELECT topic, partition, "offset" FROM outbox.published WHERE topic = ANY (%s)'
_LOCK_PUBLISHED: Final = f"{_PUBLISHED} ORDER BY topic, partition FOR UPDATE"
_CORRECT: Final = 'UPDATE outbox.published SET "offset" = %s WHERE topic = %s AND partition = %s'
_ADOPT: Final = """
INSERT INTO outbox.checkpoint (projector, generation, topic, partition, "offset", incarnation)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (projector, generation, topic, partition) DO UPDATE
SET incarnation = excluded.incarnation WHERE checkpoint.incarnation IS NULL
"""
_REPLACE: Final = """
INSERT INTO outbox.checkpoint (projector, generation, topic, partition, "offset", incarnation)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (projector, generation, topic, partition) DO UPDATE
SET "offset" = excluded."offset", incarnation = excluded.incarnation, at = clock_timestamp()
"""


class Place(NamedTuple):
    """A checkpoint: the next offset to apply, and the topic's incarnation that it is of (None: not known)."""

    offset: int
    incarnation: str | None

    def lost(self, range_: Range) -> bool:
        """Whether the broker no longer has what comes next here."""
        again = self.incarnation is not None and self.incarnation != range_.incarnation
        return again or not range_.earliest <= self.offset <= range_.end


class Horizon:
    """Watches the topics of one session. Used by one thread.

    ``log``: connection that the log is read on; ``state``: the one for everything else.
    """

    def __init__(
        self,
        plan: Plan,
        generation: str,
        broker: Broker,
        log: Connection,
        state: Connection,
        witness: Witness | None,
    ) -> None:
        self._plan = plan
        self._generation = generation
        self._broker = broker
        self._log = log
        self._state = state
        self._witness = witness
        self._inside = isinstance(broker, LocalBroker)
        self._identity = self._may_work()
        self._published: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self.incarnations: dict[str, str] = {}
        """Of each topic, as the session began."""
        self._looked_at = time.monotonic()

    # ------------------------------------------------------------------ what is missing

    def open(
        self, registry: Registry, apply: Callable[[Sequence[Event]], object], parked: set[str], stop: threading.Event
    ) -> None:
        """Fill in what the broker has lost before this session reads from it.

        1. Ask the broker what it holds. All that is below these ends is committed, so the log has it.
        2. Where it lacks what comes next: fold and apply every stream of that topic from the log. What the store
           has already, the version guard leaves alone. A crash: it is done again.
        3. Set the checkpoints of these topics to the ends of step 1, the map of what is published to what is
           there, in one transaction. A crash after it leaves nothing to do.
        """
        places = self._places()  # before the broker is asked: other members go on, and would be beyond its ends
        ranges = self._broker.ranges(self._plan.topics)
        self.incarnations = {tp.topic: range_.incarnation for tp, range_ in ranges.items()}
        lost = {tp.topic for tp, range_ in ranges.items() if places.get(tp, _beginning(range_)).lost(range_)}
        if lost:
            log.warning("the broker lacks messages", projector=self._plan.name, topics=sorted(lost), from_="log")
            if not self._fill(lost, registry, apply, parked, stop):
                return
        self._correct_published()
        self._settle(ranges, lost)

    def starts(self, partition: TopicPartition, at: int | None) -> int | None:
        """A partition begins at this offset; returns it."""
        self._next[partition] = at or 0
        return at

    def check(self, deliveries: Sequence[Delivery]) -> None:
        """Look at a batch before it is applied.

        Raises :class:`~outbox.errors.MessagesLost` if messages before or between these are gone: the session is
        to be opened anew. Raises :class:`~outbox.errors.LogWentBack` for events that the log does not have.
        """
        jumps = self._jumps(deliveries)
        if jumps:  # transactions leave gaps too: only the broker knows
            self._compare_now(jumps)
        if self._witness is not None and not self._inside:
            self._check_known(deliveries)

    def applied(self, deliveries: Sequence[Delivery]) -> None:
        """The store holds these."""
        if self._witness is not None:
            self._witness.note(self._state.info.dbname, self._identity, deliveries)

    def look(self) -> None:
        """Look now and then, since a topic that was emptied gives nothing. Raises as :meth:`check`."""
        if self._witness is not None:
            check_identity(self._state)
        if time.monotonic() - self._looked_at > LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            with suppress(BrokerUnavailable):  # said by the next poll, which knows how to wait
                self._compare({tp: place.offset for tp, place in self._places().items()})

    def _jumps(self, deliveries: Sequence[Delivery]) -> dict[TopicPartition, int]:
        """The partitions whose offsets do not follow, with the offset that should have come."""
        jumps: dict[TopicPartition, int] = {}
        for delivery in deliveries:
            tp = TopicPartition(delivery.topic, delivery.partition)
            if delivery.offset != self._next.setdefault(tp, delivery.offset):
                jumps.setdefault(tp, self._next[tp])
            self._next[tp] = delivery.offset + 1
        return jumps

    def _compare_now(self, wanted: Mapping[TopicPartition, int]) -> None:
        """With the batch in hand already: if the broker cannot be asked, the session must begin at its checkpoint."""
        try:
            self._compare(wanted)
        except BrokerUnavailable as error:
            raise MessagesLost(f"{self._plan.name}: offsets jump, and the broker cannot be asked: {error}") from error

    def _compare(self, wanted: Mapping[TopicPartition, int]) -> None:
        ranges = self._broker.ranges(self._plan.topics)
        for tp, offset in wanted.items():
            known = self.incarnations.get(tp.topic)
            range_ = ranges.get(tp)
            if range_ is None or Place(offset, known).lost(range_):
                held = f"{range_.earliest} to {range_.end}" if range_ else "nothing"
                raise MessagesLost(
                    f"{self._plan.name}: {tp.topic}/{tp.partition} holds {held}, wanted is {offset}:"
                    " what is missing is filled from the log"
                )

    def _places(self) -> dict[TopicPartition, Place]:
        rows = self._state.execute(_PLACES, [self._plan.name, self._generation])
        found = {TopicPartition(t, p): Place(offset, incarnation) for t, p, offset, incarnation in rows}
        return {tp: place for tp, place in found.items() if tp.topic in self._plan.topics}

    def _fill(
        self,
        topics: set[str],
        registry: Registry,
        apply: Callable[[Sequence[Event]], object],
        parked: set[str],
        stop: threading.Event,
    ) -> bool:
        """Apply every stream of these topics; False if told to stop on the way."""
        pairs = zip(self._plan.projection.categories, self._plan.topics, strict=True)
        categories = [category for category, topic in pairs if topic in topics]
        events = read_by_stream(self._log, registry, categories=categories)
        filled = 0
        while page := list(islice(events, PAGE)):
            if stop.is_set():
                return False
            apply([event for event in page if event.stream not in parked])
            filled += len(page)
        log.info("filled from the log", projector=self._plan.name, events=filled)
        return True

    def _settle(self, ranges: Mapping[TopicPartition, Range], lost: set[str]) -> None:
        with self._state.transaction():
            for tp, range_ in sorted(ranges.items()):
                begin = range_.end if tp.topic in lost else range_.earliest
                query = _REPLACE if tp.topic in lost else _ADOPT
                self._state.execute(query, [self._plan.name, self._generation, *tp, begin, range_.incarnation])

    def _correct_published(self) -> None:
        """The map never goes back by itself, so after a topic was made again it would tell of messages to come.

        The rows are locked first, and the broker asked then: a relay that has published since, and now waits for
        the lock, writes the greater offset behind us.
        """
        if not self._ahead(self._broker.ends(self._plan.topics)):
            return
        with self._state.transaction():
            self._state.execute(_LOCK_PUBLISHED, [list(self._plan.topics)])
            ends = self._broker.ends(self._plan.topics)
            for tp in self._ahead(ends):
                self._state.execute(_CORRECT, [ends[tp] - 1, *tp])

    def _ahead(self, ends: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        return sorted(tp for tp, offset in self._read_published().items() if tp in ends and offset >= ends[tp])

    def _read_published(self) -> dict[TopicPartition, int]:
        rows = self._state.execute(_PUBLISHED, [list(self._plan.topics)])
        return {TopicPartition(t, p): offset for t, p, offset in rows}

    # ------------------------------------------------------------------ what is too much

    def _may_work(self) -> Identity:
        """Raise :class:`~outbox.errors.LogWentBack` if this log lacks what the store has, as far as can be told."""
        if self._witness is None:
            return read_identity(self._state)
        identity = check_identity(self._state)
        self._check_generation(identity)
        seen = self._witness.check(self._state, identity)
        if identity.promoted and self._inside:
            if not seen:
                raise halt(
                    self._state,
                    f"PostgreSQL was promoted (timeline {identity.timeline} to {identity.timeline_now}), and nothing"
                    " outside it can tell whether the log lost its end",
                )
            accept_timeline(self._state, identity.timeline_now)
        return identity

    def _check_generation(self, identity: Identity) -> None:
        """A generation made before the log went back may hold what it lost, even if others were reconciled since."""
        if identity.cut_at is None:
            return
        row = self._state.execute(
            "SELECT made_at < %s FROM outbox.generation WHERE projector = %s AND generation = %s",
            [identity.cut_at, self._plan.name, self._generation],
        ).fetchone()
        if row is not None and row[0]:
            raise went_back(f"{self._plan.name}: generation {self._generation} is from before the log went back")

    def _check_known(self, deliveries: Sequence[Delivery]) -> None:
        """An offset that the map of what is published does not explain: is the event in the log?"""
        if not self._unexplained(deliveries):
            return
        self._published = self._read_published()
        beyond = self._unexplained(deliveries)
        unknown = unknown_event(self._state, event_ids(beyond)) if beyond else None
        if unknown is not None:
            raise halt(self._state, f"the broker holds event {unknown}, {LOST}")

    def _unexplained(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [d for d in deliveries if d.offset > self._published.get(TopicPartition(d.topic, d.partition), -1)]


def _beginning(range_: Range) -> Place:
    """Where a partition without a checkpoint begins: anything that was ever deleted from it is lost."""
    return Place(0, range_.incarnation)
