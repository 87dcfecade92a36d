"""Settings of the Kafka brokers, one for both clients."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from outbox.errors import SettingsError

Client = Literal["auto", "kafka-python", "confluent"]
Compression = Literal["lz4", "gzip", "snappy", "zstd", "none"]

NAMED_SAFE_S: Final = 1.0
"""A process that takes over another's name must start, join and read first, which takes longer than this."""

MESSAGE_BYTES_MAX: Final = 1_000_000
"""Kafka's default ``message.max.bytes`` is 1 MiB and counts the batch around the message too."""

MEMBER_NAME: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}")
"""What Kafka's own clients take for a ``group.instance.id``."""


REPLICATION_MAX: Final = 10_000
"""As many servers as librdkafka takes a cluster to have."""


def check_replication(copies: int) -> int:
    """The number of copies. Raises :class:`ValueError` for one that no topic can have."""
    if copies != -1 and not 1 <= copies <= REPLICATION_MAX:
        raise ValueError(f"it must be 1 to {REPLICATION_MAX}, or -1 for the servers' own default")
    return copies


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where Kafka is and how it is used. Times are in seconds."""

    bootstrap: str
    """``host:port``, several separated by commas."""
    client: Client = "auto"
    """``auto`` is confluent-kafka if it is installed, else kafka-python."""
    partitions: int = 12
    """Of topics made on demand; never changed afterwards, as keys would move between partitions."""
    replication: int = -1
    """Of topics made on demand; -1 is the servers' own default (``default.replication.factor``)."""
    compression: Compression = "lz4"
    """Every consumer needs the codec's library too: confluent-kafka brings all, kafka-python has gzip and
    none, and wants the packages lz4, python-snappy or zstandard for the others."""
    linger_ms: float = 25.0
    """How long a batch waits for more messages while a page is handed over. A publish ends with a flush, which ends the
    wait: single events do not pay for it, and a backlog travels in few batches."""
    max_message_bytes: int = MESSAGE_BYTES_MAX
    """Larger messages are refused before they are sent. Not above the servers' ``message.max.bytes``."""
    timeout_s: float = 30.0
    """A publish, and any request, that has not ended by then raises ``BrokerUnavailable``."""
    session_timeout_s: float = 10.0
    """A member that has died gives up its partitions after this. The servers take 6 s at least by default."""
    poll_interval_max_s: float = 300.0
    """A member that has not polled for this long gives up its partitions."""
    member: str | None = None
    """The process's name in its groups (Kafka's static membership, ``group.instance.id``, KIP-345). One that is
    killed and started again under its name within ``session_timeout_s`` has its partitions back at once, and the
    other members keep theirs. In return a member with a name never leaves: one that is closed for good keeps its
    partitions, unread, for ``session_timeout_s``. Every running process needs a name of its own: of two with one
    name in one group the older gets :class:`~outbox.errors.MemberFenced`. None: a member leaves when it is closed,
    and one that was killed is waited for."""
    security: Mapping[str, Any] = field(default_factory=dict)
    """TLS and SASL options by librdkafka's names (``security.protocol``, ``sasl.mechanism``,
    ``sasl.username``, ``sasl.password``, ``ssl.ca.location``, ``ssl.certificate.location``,
    ``ssl.key.location``, ``ssl.key.password``); others are passed through under the client's own names."""

    @property
    def safe_s(self) -> float:
        """A member that stands still keeps its partitions for this long at least. Not for the whole session: its last
        heartbeat (there are three to a session, and a busy machine is late with them) lies before its halt."""
        unnamed_s = self.session_timeout_s / 2
        return unnamed_s if self.member is None else min(unnamed_s, NAMED_SAFE_S)

    @property
    def timeout_ms(self) -> int:
        """:attr:`timeout_s` for the protocol's fields, which are whole milliseconds."""
        return max(1, round(self.timeout_s * 1000))

    def session_refused(self) -> SettingsError:
        """What the servers' error INVALID_SESSION_TIMEOUT means, which no trying again mends."""
        return SettingsError(
            f"kafka.session_timeout_s is {self.session_timeout_s:g}, which Kafka at {self.bootstrap} refuses: set it"
            " between its group.min.session.timeout.ms (6 s by default) and group.max.session.timeout.ms (30 min)"
        )

    def __post_init__(self) -> None:
        for name, allowed in (("client", get_args(Client)), ("compression", get_args(Compression))):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"kafka.{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if not all(server.strip() for server in self.bootstrap.split(",")):
            raise SettingsError(
                f"kafka.bootstrap is {self.bootstrap!r}: an address is empty; give host:port, several with commas"
            )
        if self.member is not None and not MEMBER_NAME.fullmatch(self.member):
            raise SettingsError(
                f"kafka.member is {self.member!r}: 1 to 249 letters, digits, '.', '_' and '-', and not '.' or '..'"
            )
        try:
            check_replication(self.replication)
        except ValueError as error:
            raise SettingsError(f"kafka.replication is {self.replication!r}: {error}") from error
        for name in ("partitions", "max_message_bytes", "timeout_s", "session_timeout_s", "poll_interval_max_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"kafka.{name} is {getattr(self, name)!r}: it must be above 0")
        if not 0 <= self.linger_ms < math.inf:
            raise SettingsError(f"kafka.linger_ms is {self.linger_ms!r}: it must be 0 or more")
