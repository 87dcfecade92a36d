"""What both Kafka clients share about transactions: whole batches, a note in each, and one publisher a name.

The name is the transactional id, by which the servers fence all publishers but the last to ask for it, and the topic of
the notes: of one partition, compacted, and written by nobody else, so that it has no open transaction once the others
are fenced. (Kafka's design: KIP-98, "Exactly Once Delivery and Transactional Messaging"; KIP-447 on fencing.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from outbox.broker.protocol import Message, Note, Outgoing, Places
from outbox.broker.publishing import ServersRefused
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import TopicRefused, Topics, first_refused
from outbox.errors import BrokerError, Fenced, MessageRefused, SettingsError

NOTES_CONFIG: Final[Mapping[str, str]] = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),
    "segment.ms": str(60 * 60 * 1000),
}
"""Only the last note is ever wanted. The segment being written is not compacted, so it is kept small."""

TAILS: Final = (100, 10_000)
"""The last note is looked for in so many offsets before the end; then in all there are."""

TIMEOUT_MIN_S: Final = 60.0
TIMEOUT_MAX_S: Final = 900.0
"""The servers refuse a longer one by default (``transaction.max.timeout.ms``)."""


class Client(Protocol):
    """A Kafka client under one transactional id. Raises BrokerUnavailable and Fenced, and what is said besides."""

    def fence(self) -> None:
        """Take the id over, with everything earlier ended."""

    def last_note(self) -> bytes | None:
        """The last committed note."""

    def begin(self) -> None: ...

    def attempt(self, messages: Sequence[Outgoing]) -> Places:
        """Send all and wait. Raises MessageRefused (nothing behind it was sent), ServersRefused or TopicRefused."""

    def commit(self) -> None: ...

    def abort(self) -> None:
        """Undo the transaction; the next one may begin."""

    def discard(self) -> None:
        """Throw away the connection and all that waits in it."""


class KafkaTransactions:
    """See :class:`outbox.broker.protocol.Transactions`."""

    def __init__(self, client: Client, topics: Topics, notes: Topics, name: str) -> None:
        self._client = client
        self._topics = topics
        self._notes = notes
        self._name = name
        self._last: bytes | None = None

    def recover(self) -> bytes | None:
        """See the protocol. Raises :class:`~outbox.errors.SettingsError` if the name cannot be a topic's."""
        self._client.discard()
        try:
            if self._notes.ensure([self._name])[self._name] != 1:
                raise SettingsError(f"topic {self._name!r} must have one partition: delete it or change relay.name")
            self._client.fence()
            self._last = self._client.last_note()
            return self._last
        except TopicRefused as error:
            raise SettingsError(f"relay.name or prefix: {error}") from error
        except BaseException:
            self._client.discard()
            raise

    def publish(self, messages: Sequence[Outgoing], note: Note | None = None) -> Places:
        """See the protocol."""
        self._check_topics(messages)
        runs = [range(len(messages))]
        while True:
            try:
                return self._transact(messages, runs, note)
            except _RunRefused as refused:
                self._begin_anew()
                if len(refused.run) == 1:
                    raise refused.of(messages) from refused
                runs = list(_split(runs, refused.run))
            except MessageRefused:
                self._undo()
                raise
            except BaseException:
                self._client.discard()
                raise

    def close(self) -> None:
        """Every transaction has ended or is undone by the next :meth:`recover`."""
        self._client.discard()

    def _transact(self, messages: Sequence[Outgoing], runs: Sequence[range], note: Note | None) -> Places:
        self._client.begin()
        places = {partition: last for run in runs for partition, last in self._send(messages, run).items()}
        noted = None if note is None else note(places)
        if noted is not None:
            self._put(noted)
        self._client.commit()
        self._last = self._last if noted is None else noted
        return places

    def _check_topics(self, messages: Sequence[Outgoing]) -> None:
        try:
            self._topics.ensure([message.topic for message in messages])
        except TopicRefused as error:
            raise first_refused(messages, error) from error

    def _send(self, messages: Sequence[Outgoing], run: range) -> Places:
        try:
            return self._client.attempt(messages[run.start : run.stop]) if run else {}
        except MessageRefused as refusal:
            raise MessageRefused(str(refusal), run.start + refusal.index) from refusal
        except ServersRefused as error:
            raise _RunRefused(run, error) from error

    def _put(self, note: bytes) -> None:
        try:
            self._client.attempt([Message(self._name, self._name, note)])
        except (MessageRefused, ServersRefused) as error:
            raise BrokerError(
                f"the relay's note of {len(note)} bytes is refused, lower relay.page_max or let topic"
                f" {self._name!r} take larger messages: {error}"
            ) from error

    def _undo(self) -> None:
        try:
            self._client.abort()
        except BaseException:
            self._client.discard()
            raise

    def _begin_anew(self) -> None:
        """After a refusal by the servers, which leaves both clients out of step with them: take the name over from
        ourselves. If somebody else has committed anything meanwhile, we are over. (If not, nothing that we are about
        to publish can have been published.)"""
        self._client.discard()
        try:
            self._client.fence()
            if self._client.last_note() != self._last:
                raise taken_over(self._name)
        except BaseException:
            self._client.discard()
            raise


class _RunRefused(Exception):
    """The servers refuse some message of a run that was sent together, or the run as a whole (as too large)."""

    def __init__(self, run: range, error: ServersRefused) -> None:
        self.run = run
        self.error = error

    def of(self, messages: Sequence[Outgoing]) -> MessageRefused:
        """What is told of a run of one message."""
        at = self.run.start
        return MessageRefused(f"a message for topic {messages[at].topic!r} is refused: {self.error}", at)


def _split(runs: Sequence[range], refused: range) -> Iterator[range]:
    """The runs with the refused one in halves."""
    for run in runs:
        if run == refused:
            half = run.start + len(run) // 2
            yield from (range(run.start, half), range(half, run.stop))
        else:
            yield run


def transaction_timeout_ms(settings: KafkaSettings) -> int:
    """How long a transaction may last before the servers end it: until then, a publisher that died and has no successor
    keeps readers of committed messages from what comes behind its transaction."""
    return round(min(max(3 * settings.timeout_s, TIMEOUT_MIN_S), TIMEOUT_MAX_S) * 1000)


def taken_over(name: str) -> Fenced:
    """The error of a publisher that is one no more."""
    return Fenced(f"{name}: another publisher has taken over")


def tails(low: int, end: int) -> Iterator[int]:
    """Where to begin to look for the last note before ``end``: ever earlier, down to ``low``."""
    for length in TAILS:
        if end - length > low:
            yield end - length
    yield low
