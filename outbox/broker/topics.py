"""What brokers share about topics: which exist, which partition a key belongs to, and what a refused one is."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from outbox.broker.protocol import Outgoing
from outbox.errors import BrokerError, BrokerUnavailable, MessageRefused, OutboxError

TOPICS_KNOWN_MAX: Final = 10_000
"""Beyond this the topics longest unused are asked for again."""

SEEN_WITHIN_S: Final = 10.0
LOOK_S: Final = 0.05


class TopicRefused(OutboxError):
    """A topic can never be made: its name is invalid, or the rights are missing."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic!r} is refused: {reason}")
        self.topic = topic


Find = Callable[[Sequence[str]], Mapping[str, int]]
"""The partitions of those of the topics that exist."""
Make = Callable[[Sequence[str]], None]
"""Make the topics; one that exists already is no error. Raises :class:`TopicRefused`."""


class Topics:
    """The topics known to exist, with their numbers of partitions."""

    def __init__(self, find: Find, make: Make) -> None:
        self._find = find
        self._make = make
        self._known: OrderedDict[str, int] = OrderedDict()

    def ensure(self, topics: Iterable[str]) -> dict[str, int]:
        """The number of partitions of each, made if missing. Another maker may win the race.

        Raises :class:`TopicRefused` or :class:`~outbox.errors.BrokerUnavailable`.
        """
        wanted = list(dict.fromkeys(topics))
        unknown = [topic for topic in wanted if topic not in self._known]
        if unknown:
            self._learn(unknown)
        partitions = {topic: self._use(topic) for topic in wanted}
        while len(self._known) > TOPICS_KNOWN_MAX:
            self._known.popitem(last=False)
        return partitions

    def forget(self) -> None:
        """Ask again for every topic: one may have been deleted."""
        self._known.clear()

    def _learn(self, unknown: Sequence[str]) -> None:
        self._known.update(self._find(unknown))
        missing = [topic for topic in unknown if topic not in self._known]
        if missing:
            self._make(missing)
            self._await(missing)

    def _await(self, made: Sequence[str]) -> None:
        """A topic is made by the controller and seen by the other nodes a moment later: never a refusal."""
        deadline = time.monotonic() + SEEN_WITHIN_S
        self._known.update(self._find(made))
        while any(topic not in self._known for topic in made) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self._known.update(self._find(made))

    def _use(self, topic: str) -> int:
        if topic not in self._known:
            raise BrokerUnavailable(f"topic {topic!r} was made but cannot be seen yet")
        self._known.move_to_end(topic)
        return self._known[topic]


@contextmanager
def for_a_consumer() -> Iterator[None]:
    """A refused topic is a :class:`~outbox.errors.BrokerError` there: it has no message that could be parked."""
    try:
        yield
    except TopicRefused as error:
        raise BrokerError(str(error)) from error


def first_refused(messages: Sequence[Outgoing], refused: TopicRefused) -> MessageRefused:
    """The refusal of the first message of a refused topic."""
    index = next(i for i, message in enumerate(messages) if message.topic == refused.topic)
    return MessageRefused(str(refused), index)


def encode_key(message: Outgoing, index: int) -> bytes:
    """The key as UTF-8. Raises :class:`~outbox.errors.MessageRefused` for a lone surrogate."""
    try:
        return message.key.encode()
    except UnicodeEncodeError as error:
        raise MessageRefused(f"key {message.key!r} cannot be encoded as UTF-8", index) from error


def decode_key(key: bytes | None) -> str:
    """The key as text; bytes that are not UTF-8 (another program's) become surrogates, so that none is lost."""
    return key.decode("utf-8", "surrogateescape") if key else ""


def decode_headers(headers: Sequence[tuple[str, bytes | None]] | None) -> Mapping[str, bytes]:
    """Headers by name; the last of a name stands, and one without a value (another program's) is empty."""
    if not headers:
        return {}
    return {name: value or b"" for name, value in headers}
