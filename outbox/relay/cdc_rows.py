"""Rows of the outbox out of pgoutput's messages, transaction by transaction.

A row refers to its event by position, and both come in one transaction. What is too large to be held (a transaction
of many rows, or one the server streams while it is still open) is only counted: its rows stand in the outbox, under
its id, until they are published, and are read from there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from outbox.envelope import topic_of
from outbox.errors import DatabaseError
from outbox.event import category_of
from outbox.relay.pgoutput import Begin, Commit, Decoded, Insert, Relation, StreamAbort, StreamCommit, StreamStart
from outbox.relay.rows import OutboxRow

HELD_ROWS: Final = 10_000
HELD_BYTES: Final = 16 << 20
"""What of one transaction is held in memory, at most; from there on its rows are read from the outbox."""

SCHEMA: Final = "outbox"
_OUTBOX: Final = ("seq", "xid", "position", "topic", "key", "headers", "payload")
_EVENT: Final = ("position", "stream", "version", "type", "id", "data", "meta", "at")

_Pick = Callable[[Any], tuple[Any, ...]]
_Listed = tuple[int, int | None, Any]


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction that has committed, its commit ending at ``lsn``.

    ``xid``: None if it wrote nothing into the outbox. ``rows``: by ``seq``; None if they are to be read from there.
    """

    lsn: int
    xid: int | None = None
    rows: list[OutboxRow] | None = field(default_factory=list)


class Assembly:
    """Puts transactions together. Holds one at a time, and of those being streamed no more than their ids."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._tables: dict[int, tuple[Relation, bool, _Pick]] = {}
        self._streamed: dict[int, int | None] = {}
        self._block = 0
        self._xid: int | None = None
        self._rows: list[_Listed] = []
        self._events: dict[int, tuple[Any, ...]] = {}
        self._bytes, self._whole = 0, True

    def feed(self, message: Decoded, size: int) -> Committed | None:
        """Take one message (of ``size`` bytes); the transaction, if that was its end."""
        if isinstance(message, Insert):
            self._insert(message, size)
            return None
        if isinstance(message, Commit):
            return self._commit(message.end_lsn)
        return self._framing(message)

    def _framing(self, message: Decoded) -> Committed | None:
        if isinstance(message, Begin):
            self._clear()
        elif isinstance(message, StreamStart):
            self._block = message.xid
            self._streamed.setdefault(message.xid, None)
        elif isinstance(message, StreamCommit):
            xid = self._streamed.pop(message.xid, None)
            return Committed(message.end_lsn, xid, None if xid is not None else [])
        elif isinstance(message, StreamAbort) and message.xid == message.subxid:
            self._streamed.pop(message.xid, None)
        return None

    def _insert(self, insert: Insert, size: int) -> None:
        relation, new, xid = insert
        found = self._tables.get(relation.id)
        if found is None or found[0] is not relation:
            found = self._known(relation)
        _, outbox, pick = found
        if xid:
            if outbox and self._streamed[self._block] is None:
                self._streamed[self._block] = _number(pick(new)[1])
            return
        self._bytes += size
        if self._whole and (len(self._rows) >= HELD_ROWS or self._bytes >= HELD_BYTES):
            self._whole = False
            self._rows.clear()
            self._events.clear()
        if outbox:
            self._list(*pick(new))
        elif self._whole:
            event = pick(new)
            self._events[_number(event[0])] = event

    def _list(self, seq: bytes, xid: bytes, position: bytes | None, *plain: Any) -> None:
        if self._xid is None:
            self._xid = _number(xid)
        if self._whole:
            self._rows.append((_number(seq), None if position is None else _number(position), plain))

    def _commit(self, lsn: int) -> Committed:
        xid = self._xid
        if xid is None:
            return Committed(lsn)
        self._rows.sort(key=itemgetter(0))  # COPY may write the ring's parts one after another
        # An event of an earlier transaction (somebody wrote its row anew) is looked up with the rest.
        known = self._whole and all(p is None or p in self._events for _, p, _ in self._rows)
        rows = [self._outbox_row(*row) for row in self._rows] if known else None
        self._clear()
        return Committed(lsn, xid, rows)

    def _clear(self) -> None:
        self._xid = None
        self._rows, self._events = [], {}
        self._bytes, self._whole = 0, True

    def _outbox_row(self, seq: int, position: int | None, plain: tuple[Any, ...]) -> OutboxRow:
        if position is None:
            topic, key, headers, payload = plain
            return OutboxRow(seq, None, topic.decode(), key.decode(), payload, json=headers)
        _, stream, version, type_, id_, data, meta, at = self._events[position]
        stream = stream.decode()
        return OutboxRow(
            seq,
            position,
            topic_of(self._prefix, category_of(stream)),
            stream,
            data,
            _number(version),
            type_.decode(),
            str(uuid.UUID(bytes=id_)),
            _number(at),
            meta,
        )

    def _known(self, relation: Relation) -> tuple[Relation, bool, _Pick]:
        """The table, whether it is the outbox (else it is the log), and what picks its columns by name."""
        outbox = relation.name == "outbox"
        if relation.schema != SCHEMA or relation.name not in {"outbox", "event"}:
            raise DatabaseError(f"the relay's publication holds a foreign table, {relation.schema}.{relation.name}")
        places = [relation.names.index(name) for name in (_OUTBOX if outbox else _EVENT)]
        found = self._tables[relation.id] = (relation, outbox, itemgetter(*places))
        return found


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)
