"""What the relay and the projectors need of a broker, and nothing more.

A broker has topics; a topic has partitions; a partition is an ordered run of messages with rising
offsets. Messages of one key go to one partition, in the order published. Two implementations live
beside this file (Kafka, and PostgreSQL itself for the embedded mode); one conformance suite runs
against all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Range(NamedTuple):
    """What a partition holds."""

    incarnation: str
    """Of its topic: another one once the topic was deleted and made again, whatever its offsets are."""
    earliest: int
    end: int
    """The offset the next message will get."""


class Message(NamedTuple):
    """One message to publish. ``key`` decides its partition and its order."""

    topic: str
    key: str
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Outgoing(Protocol):
    """What can be published: a :class:`Message`, or something that makes its parts when they are asked for."""

    @property
    def topic(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """To be asked for once, and kept no longer than it takes to send them."""


class Delivery(NamedTuple):
    """One message as a consumer gets it."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes | None
    headers: Mapping[str, bytes] = MappingProxyType({})


Places = Mapping[TopicPartition, int]
"""How far messages reach: of each partition they went to, the offset of the last one."""


class Producer(Protocol):
    """Publishes in order. Used by one thread."""

    def publish(self, messages: Sequence[Outgoing]) -> Places:
        """Publish all, and return where they went once every one is durable. Those of a key stay in the order given.

        Topics that do not exist are made. Raises :class:`~outbox.errors.BrokerUnavailable` (some may
        have been published: publish them all again) or :class:`~outbox.errors.MessageRefused`.
        """

    def close(self) -> None:
        """Release the connection. Nothing published is lost by it."""


Note = Callable[[Places], bytes]
"""Writes a note, once it is known where the messages have gone that it goes with."""


class Transactions(Producer, Protocol):
    """A producer of which there is one at a time under a name, and whose batches are published whole or not at all.

    What its last transaction noted can be read back, by the next one of the name. Used by one thread.
    """

    def recover(self) -> bytes | None:
        """Become the one of this name and return the last note; None if there is none. First of all.

        From then on every earlier one is fenced: what it has not committed is undone and it commits nothing more.
        Raises :class:`~outbox.errors.BrokerUnavailable`.
        """

    def publish(self, messages: Sequence[Outgoing], note: Note | None = None) -> Places:
        """As :meth:`Producer.publish`, in one transaction with the note.

        Raises :class:`~outbox.errors.MessageRefused` (nothing of the batch was published),
        :class:`~outbox.errors.Fenced`, or :class:`~outbox.errors.BrokerUnavailable`, after which it is unknown whether
        all was published or nothing, and this object is of no more use: the next one's :meth:`recover` tells.
        """


class Consumer(Protocol):
    """One member of one group. Used by one thread."""

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """Up to ``max_messages``, waiting at most ``timeout_s`` for the first; per partition in offset order.

        A partition that has just been assigned starts where ``start`` (given to
        :meth:`Broker.consumer`) says. Raises :class:`~outbox.errors.BrokerUnavailable`.
        """

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the broker that everything below these offsets is done (for its own tools' eyes: the
        truth is the projector's checkpoint). A lost or refused commit is not an error."""

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this member has now."""

    def close(self) -> None:
        """Leave the group; a member with a name (Kafka) stays in it for as long as its session."""


class Start(Protocol):
    """Where to begin in a partition: the next offset to read, or None for its earliest one."""

    def __call__(self, partition: TopicPartition) -> int | None: ...


class Broker(Protocol):
    """A broker's address and settings; connections are opened by the calls."""

    def producer(self) -> Producer:
        """A connected producer, safe against reordering and duplicates of its own retries."""

    def transactions(self, name: str) -> Transactions:
        """A producer of transactions under ``name``, which must be fit for a topic's name."""

    def consumer(self, group: str, topics: Sequence[str], start: Start) -> Consumer:
        """A member of ``group``; partitions of ``topics`` are shared among its members.

        Topics that do not exist yet are made, so that nothing published later is missed.
        """

    def ends(self, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        """The offset the next message of each partition will get; topics that do not exist are left out."""

    def ranges(self, topics: Sequence[str]) -> Mapping[TopicPartition, Range]:
        """What each partition holds; topics that do not exist are left out."""

    def close(self) -> None:
        """Release what the broker object itself holds."""
