"""The tree of errors. Each names what is wrong and what to do about it.

``OutboxError``
├── ``SettingsError``            a key of the settings is wrong or missing
│   └── ``StoreChanged``         a projector's records are in another store than its settings name
├── ``InvalidEvent``             an event was refused before it reached the log
│   └── ``UnknownEventType``     no schema has that type, or no schema has that id
├── ``SchemaError``              a schema file is malformed or breaks the evolution rules
├── ``AppendError``
│   ├── ``VersionConflict``      the stream is not at the expected version; nothing was written
│   └── ``DuplicateEvent``       an event id already stands elsewhere in the log; nothing was written
├── ``DatabaseError``            PostgreSQL cannot be reached, or its tables are missing
├── ``LogWentBack``              PostgreSQL was restored to an earlier moment; nothing runs until a reconcile
├── ``BackupError``              a backup is damaged, incomplete or of another log
├── ``BrokerError``
│   ├── ``BrokerUnavailable``    passing: try again later
│   ├── ``MemberFenced``         another process has this one's member name; this one must end
│   ├── ``MessagesLost``         a topic no longer has what was not read; the log has it
│   └── ``MessageRefused``       for good: this one message will never be taken
├── ``NotParked``                nothing is parked there that could be tried again or discarded
├── ``Fenced``                   another process has taken over; this one must stop writing
├── ``StoreError``
│   ├── ``StoreUnavailable``     passing: the store is down, slow or overloaded
│   └── ``RecordsRefused``       for good: the store refuses some records of the batch
├── ``ProjectionError``          a projection's own code failed on one stream
├── ``VerificationFailed``       a store differs from the log
└── ``WaitTimeout``              a store did not catch up in time
"""

from collections.abc import Mapping


class OutboxError(Exception):
    """Base of every error of this package. Its text is one line, fit for a user's terminal."""


class SettingsError(OutboxError):
    """A setting is missing or wrong; the message names its key."""


class StoreChanged(SettingsError):
    """A generation of a projector's records is in another store than the settings name.

    Ends the projector: it would go on from its checkpoints, and write only what is new into the other store.
    """


class InvalidEvent(OutboxError):
    """An event's data was refused before it reached the log; ``field`` says where."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownEventType(InvalidEvent):
    """No registered schema has this event type, or these bytes name a schema id nobody knows."""


class SchemaError(OutboxError):
    """A schema file is malformed, or its new version cannot read what the old one wrote."""


class AppendError(OutboxError):
    """An append was refused. Nothing of its batch was written; the caller's transaction goes on."""


class VersionConflict(AppendError):
    """The stream is not at the version the caller expected."""

    def __init__(self, stream: str, expected: str, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, expected {expected}: read it again, decide again, append again"
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual


class DuplicateEvent(AppendError):
    """An event id of the batch already stands in the log, under another stream or in another batch."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"append to {stream!r}: an event id of the batch already stands elsewhere in the log")
        self.stream = stream


class DatabaseError(OutboxError):
    """PostgreSQL cannot be reached, or has not been migrated."""


class LogWentBack(OutboxError):
    """Stores or broker hold events that the log no longer has: it was restored to an earlier moment.

    Ends the process: nothing may run before ``outbox reconcile``.
    """


class BackupError(OutboxError):
    """A backup is damaged, incomplete, of another log, or cannot be restored here."""


class BrokerError(OutboxError):
    """The broker failed."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached or did not answer in time; trying again later may succeed."""


class MemberFenced(BrokerError):
    """Another process has joined a group under this one's member name and has its partitions; this one is out of it.

    Ends the process: joining again would put the other one out, and so for ever.
    """

    def __init__(self, bootstrap: str, member: str | None) -> None:
        super().__init__(
            f"Kafka at {bootstrap}: another process has taken the member name {member!r}, so this one ends: nothing to"
            " do if the other is its successor, else give each running process a name of its own (OUTBOX_KAFKA__MEMBER)"
        )
        self.member = member


class MessagesLost(BrokerError):
    """A topic was deleted, emptied or made again before all of it was read; the projector fills it from the log."""


class MessageRefused(BrokerError):
    """The broker will never take this message (too large, forbidden topic, ...).

    ``index`` is its place in the batch given to ``publish``. Everything before it was acknowledged; of what
    comes after it nothing of its partition was published, and of other partitions perhaps some, which is
    published again with the next batch.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class NotParked(OutboxError):
    """What somebody wants to try again or discard is not parked, or not for a reason that this would mend."""


class RelayInUse(OutboxError):
    """A relay cannot be forgotten: it leads, has rows that wait, or is not known."""


class Fenced(OutboxError):
    """A newer epoch has taken over. Whoever sees this must not write again."""


class StoreError(OutboxError):
    """A store failed."""


class StoreUnavailable(StoreError):
    """The store is down, slow or overloaded; the same batch may succeed later."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RecordsRefused(StoreError):
    """The store refuses some records for good; all others of the batch were applied.

    ``reasons`` maps each refused record's key to the store's own words.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        first = next(iter(reasons.items()), ("?", "?"))
        super().__init__(f"{len(reasons)} record(s) refused, first {first[0]!r}: {first[1]}")
        self.reasons = dict(reasons)


class ProjectionError(OutboxError):
    """A projection's code raised on an event; only that stream is parked."""


class VerificationFailed(OutboxError):
    """A store is not equal to the log."""


class WaitTimeout(OutboxError):
    """A store did not catch up with a token in time."""
