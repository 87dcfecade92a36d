"""What the relay writes into each of the broker's transactions: all that PostgreSQL is to be told of it.

So that a leader that died between the broker's commit and PostgreSQL's is made good by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import orjson

from outbox.broker.protocol import Places, TopicPartition
from outbox.errors import BrokerError
from outbox.relay.cursor import Cursor, Snapshot

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Done:
    """Parked rows that were published: their topic and key, and each one's seq."""

    topic: str
    key: str
    seqs: Sequence[int]


@dataclass(frozen=True, slots=True)
class Note:
    """One page, the ``step``-th, of the log ``log`` in PostgreSQL's ``timeline``."""

    log: str
    timeline: int
    step: int
    cursor: Cursor
    """Behind the page."""
    published: Places
    """The last offset by topic and partition."""
    parked: Sequence[tuple[int, str]] = ()
    """Rows of the page that were left out, by seq, and why."""
    done: Done | None = None
    events: Sequence[str] = ()
    """Ids of some of the page's events, by which the log is known again."""

    def encode(self) -> bytes:
        """As JSON."""
        cursor = asdict(self.cursor) | {"a": self.cursor.a.text, "b": self.cursor.b.text}
        fields = {name: getattr(self, name) for name in ("log", "timeline", "step", "done", "events")}
        published = [[*place, offset] for place, offset in self.published.items()]
        reasons = {reason: n for n, reason in enumerate(dict.fromkeys(reason for _, reason in self.parked))}
        parked = {"reasons": list(reasons), "rows": [[seq, reasons[reason]] for seq, reason in self.parked]}
        return orjson.dumps({"format": FORMAT, **fields, "cursor": cursor, "published": published, "parked": parked})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises :class:`~outbox.errors.BrokerError` if it was not written by :meth:`encode`."""
        try:
            return cls._read(orjson.loads(data))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BrokerError(f"the relay's last note in the broker cannot be read: {error!r}") from error

    @classmethod
    def _read(cls, read: dict[str, Any]) -> Self:
        if read.pop("format") != FORMAT:
            raise ValueError("written by a newer release")
        cursor, parked, done = read.pop("cursor"), read.pop("parked"), read.pop("done")
        return cls(
            cursor=Cursor(**cursor | {"a": Snapshot(cursor["a"]), "b": Snapshot(cursor["b"])}),
            published={TopicPartition(topic, partition): offset for topic, partition, offset in read.pop("published")},
            parked=[(seq, parked["reasons"][n]) for seq, n in parked["rows"]],
            done=None if done is None else Done(**done),
            **read,
        )
