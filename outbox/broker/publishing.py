"""What both Kafka producers share: what becomes of a batch that fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from outbox.broker.protocol import Outgoing, Places
from outbox.broker.topics import TopicRefused, Topics, first_refused
from outbox.errors import BrokerUnavailable, MessageRefused, OutboxError


class ServersRefused(OutboxError):
    """The servers refuse a message, but its neighbours in the client's own batches failed with it."""


class KafkaProducer(ABC):
    """Publishes batches so that publishing one again after a failure never turns a key's messages round.

    For that, an implementation's attempt must leave in each partition a run of the batch's beginning: a message
    that failed is followed by none of its partition, not even later from a queue. So no message may expire by
    itself; an attempt that is out of time throws everything away at once, with the connection.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics

    def publish(self, messages: Sequence[Outgoing]) -> Places:
        """See :class:`outbox.broker.protocol.Producer`. What the servers themselves refuse (a topic's own limits
        and rights, which a client cannot know) is found only after messages behind it were sent: these are
        published again with the next batch."""
        if not messages:
            return {}
        try:
            return self.attempt(messages)
        except TopicRefused as error:
            refusal = first_refused(messages, error)
            self.publish(messages[: refusal.index])
            raise refusal from error
        except MessageRefused:
            raise
        except ServersRefused as error:
            self.discard()
            return self._narrow_down(messages, error)
        except BrokerUnavailable:
            self._topics.forget()
            self.discard()
            raise
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """Every publish has been acknowledged or given up, so nothing is waited for."""
        self.discard()

    @abstractmethod
    def attempt(self, messages: Sequence[Outgoing]) -> Places:
        """Send all and wait. Raises MessageRefused (after everything before it was acknowledged),
        ServersRefused, TopicRefused (nothing was sent) or BrokerUnavailable."""

    @abstractmethod
    def discard(self) -> None:
        """Throw away the connection and all that waits in it; the next attempt opens another."""

    def _narrow_down(self, messages: Sequence[Outgoing], error: ServersRefused) -> Places:
        """Publish the halves in order, and the halves of a half that fails, until the message is alone."""
        if len(messages) == 1:
            raise MessageRefused(f"a message for topic {messages[0].topic!r} is refused: {error}", 0) from error
        half = len(messages) // 2
        first = self.publish(messages[:half])
        try:
            return {**first, **self.publish(messages[half:])}
        except MessageRefused as refusal:
            raise MessageRefused(str(refusal), half + refusal.index) from refusal
