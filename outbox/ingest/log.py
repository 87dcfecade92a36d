"""What ingest needs of the log, and nothing more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from outbox.event import NewEvent


@dataclass(frozen=True, slots=True)
class Known:
    """A stream's last event, as ingest sees it."""

    stream: str
    version: int
    """The stream's version, 1..n."""
    digest: str | None
    """``meta["digest"]`` of the last event; None if it has none."""
    deleted: bool
    """Whether the last event is ``entity.deleted``."""
    source: str | None
    """``meta["source"]`` of the last event; None if another producer wrote it."""


class Write(NamedTuple):
    """One event to append at exactly ``expected`` + 1 (0: the stream must not exist)."""

    stream: str
    expected: int
    event: NewEvent


class Log(Protocol):
    """The log, as three questions. Used by one thread."""

    def known(self, source: str) -> Iterable[Known]:
        """The streams whose last event carries this source in its meta, deleted ones included."""

    def look(self, streams: Sequence[str]) -> Mapping[str, Known]:
        """These streams, whoever wrote them; those that do not exist are left out."""

    def append(self, writes: Sequence[Write]) -> None:
        """Append all in one transaction and commit it, or nothing. At most one write a stream.

        Raises :class:`~outbox.errors.VersionConflict` and :class:`~outbox.errors.InvalidEvent` with nothing
        written.
        """
