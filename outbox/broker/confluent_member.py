"""Whether a name in a group is still this process's own, over librdkafka."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, Final

from outbox.broker.librdkafka import answer, unavailable
from outbox.broker.settings import KafkaSettings

ANSWER_WAIT_S: Final = 5.0


class Name:
    """The name under which one consumer is in its group, and the id that the group knows it by.

    A member whose session is over joins anew without an id, and Kafka then takes it for the successor of whoever
    has its name (KIP-345). A process that stood still for longer than a session would so put out the one that has
    replaced it: so whoever was out asks first.
    """

    def __init__(self, library: Any, options: Mapping[str, Any], settings: KafkaSettings, group: str) -> None:
        self._library = library
        self._options = dict(options)
        self._settings = settings
        self._group = group
        self._id: str | None = None

    def known_as(self, member_id: str | None) -> None:
        """Note the id of this consumer after a join."""
        self._id = member_id

    def taken(self) -> bool:
        """Whether somebody else has the name. Raises :class:`~outbox.errors.BrokerUnavailable`."""
        wait_s = min(ANSWER_WAIT_S, self._settings.timeout_s)
        admin = import_module("confluent_kafka.admin").AdminClient(self._options)
        try:
            asking = partial(admin.describe_consumer_groups, [self._group], request_timeout=wait_s)
            members = answer(asking, wait_s).members
        except TimeoutError as error:
            raise unavailable(self._settings, "no answer in time") from error
        except self._library.KafkaException as error:
            raise unavailable(self._settings, error.args[0].str()) from error
        return any(m.group_instance_id == self._settings.member and m.member_id != self._id for m in members)
