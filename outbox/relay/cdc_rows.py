"""Rows of the outbox out of pgoutput's messages, transaction by transaction.

A row refers to its event by position, and both come in one transaction. What is too large to be held (a transaction
of many rows, or one the server streams while it is still open) is only counted: its rows stand in the outbox, under
its id, until they are published, and are read from there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final, NamedTuple

from outbox.envelope import topic_of
from outbox.errors import DatabaseError
from outbox.event import category_of
from outbox.relay.cdc_layout import Layout
from outbox.relay.pgoutput import (
    Commit,
    Decoded,
    Insert,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
)
from outbox.relay.pgoutput_decoder import Decoder
from outbox.relay.rows import OutboxRow, outbox_row

HELD_ROWS: Final = 10_000
HELD_BYTES: Final = 16 << 20
"""What of one transaction is held in memory, at most; from there on its rows are read from the outbox."""

SCHEMA: Final = "outbox"
_OUTBOX: Final = ("seq", "xid", "position", "topic", "key", "headers", "payload")
_EVENT: Final = ("position", "stream", "version", "type", "id", "data", "meta", "at")
_OF_AN_EVENT: Final = _OUTBOX[:3]
_OF_A_MESSAGE: Final = _OUTBOX[3:]
_BEGIN_KIND, _COMMIT_KIND, _INSERT_KIND = b"BCI"
_BEGIN_BYTES, _COMMIT_BYTES = 21, 26
_END_LSN: Final = struct.Struct("!10xQ").unpack_from

_Pick = Callable[[Any], tuple[Any, ...]]


class Committed(NamedTuple):
    """A transaction that has committed, its commit ending at ``lsn``.

    ``xid``: None if it wrote nothing into the outbox. ``rows``: by ``seq``; None if they are to be read from there.
    """

    lsn: int
    xid: int | None
    rows: list[OutboxRow] | None


class Assembly:
    """Puts transactions together. Holds one at a time, and of those being streamed no more than their ids."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._decoder = Decoder()
        self._tables: dict[int, tuple[Relation, bool, _Pick]] = {}
        self._layouts: dict[bytes, tuple[Layout, bool]] = {}
        """By the tables' ids as they stand in a message; and whether it is the outbox, else it is the log."""
        self._streamed: dict[int, int | None] = {}
        self._block = 0
        self._xid: int | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._events: dict[int, tuple[Any, ...]] = {}
        self._bytes, self._whole = 0, True

    def take(self, data: bytes) -> Committed | None:
        """Take one message of the stream; the transaction, if that was its end.

        Raises :class:`~outbox.errors.DatabaseError` as the decoder does. Of an event in a transaction of its own come
        four messages, all of which are known here; the decoder reads what is rarer, and describes the tables.
        """
        kind, size = data[0], len(data)
        if kind == _INSERT_KIND and not self._block and (known := self._layouts.get(data[1:5])) is not None:
            layout, outbox = known
            row = layout.read(data)
            if row is not None:
                self._hold(size)
                if outbox:
                    self._list(*row)
                elif self._whole:
                    self._events[row[0]] = row
                return None
        elif kind == _COMMIT_KIND and size == _COMMIT_BYTES:
            return self._commit(_END_LSN(data)[0])
        elif kind == _BEGIN_KIND and size == _BEGIN_BYTES:
            return None  # the commit before it has cleared all
        return self.feed(self._decoder.decode(data), size)

    def feed(self, message: Decoded, size: int) -> Committed | None:
        """Take one message that has been decoded (of ``size`` bytes); the transaction, if that was its end."""
        if isinstance(message, Insert):
            self._insert(message, size)
            return None
        if isinstance(message, Commit):
            return self._commit(message.end_lsn)
        return self._framing(message)

    def _framing(self, message: Decoded) -> Committed | None:
        if isinstance(message, Relation):
            self._layouts.clear()
        elif isinstance(message, StreamStart):
            self._block = message.xid
            self._streamed.setdefault(message.xid, None)
        elif isinstance(message, StreamStop):
            self._block = 0
        elif isinstance(message, StreamCommit):
            self._layouts.clear()  # what it described holds for all from here on
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
        if relation.id.to_bytes(4, "big") not in self._layouts:
            self._know_layout(relation, outbox=outbox)
        self._hold(size)
        if outbox:
            seq, id_, position, *plain = pick(new)
            self._list(_number(seq), _number(id_), None if position is None else _number(position), *plain)
        elif self._whole:
            position, stream, version, type_, id_, data, meta, at = pick(new)
            event = _number(position), stream, _number(version), type_, id_, data, meta, _number(at)
            self._events[event[0]] = event

    def _hold(self, size: int) -> None:
        self._bytes += size
        if self._whole and (len(self._rows) >= HELD_ROWS or self._bytes >= HELD_BYTES):
            self._whole = False
            self._rows.clear()
            self._events.clear()

    def _list(self, seq: int, xid: int, position: int | None, *plain: Any) -> None:
        if self._xid is None:
            self._xid = xid
        if self._whole:
            self._rows.append((seq, position, *plain))

    def _commit(self, lsn: int) -> Committed:
        xid, listed, events, whole = self._xid, self._rows, self._events, self._whole
        self._clear()
        if xid is None:
            return Committed(lsn, None, [])
        if not whole:
            return Committed(lsn, xid, None)
        if len(listed) > 1:
            listed.sort(key=itemgetter(0))  # COPY may write the ring's parts one after another
        rows = []
        for seq, position, *plain in listed:
            if position is None:
                rows.append(_plain(seq, *plain))
            elif (event := events.get(position)) is not None:
                rows.append(self._event(seq, *event))
            else:  # an event of an earlier transaction (somebody wrote its row anew) is looked up with the rest
                return Committed(lsn, xid, None)
        return Committed(lsn, xid, rows)

    def _clear(self) -> None:
        self._xid = None
        self._rows, self._events = [], {}
        self._bytes, self._whole = 0, True

    def _event(
        self,
        seq: int,
        position: int,
        stream: bytes,
        version: int,
        type_: bytes,
        id_: bytes,
        data: bytes,
        meta: bytes,
        at: int,
    ) -> OutboxRow:
        key, hexed = stream.decode(), id_.hex()
        topic = topic_of(self._prefix, category_of(key))
        id_text = f"{hexed[:8]}-{hexed[8:12]}-{hexed[12:16]}-{hexed[16:20]}-{hexed[20:]}"
        return outbox_row((seq, position, topic, key, data, version, type_.decode(), id_text, at, meta))

    def _know_layout(self, relation: Relation, *, outbox: bool) -> None:
        layout = Layout(relation, _OF_AN_EVENT, _OF_A_MESSAGE) if outbox else Layout(relation, _EVENT)
        self._layouts[relation.id.to_bytes(4, "big")] = layout, outbox

    def _known(self, relation: Relation) -> tuple[Relation, bool, _Pick]:
        """The table, whether it is the outbox (else it is the log), and what picks its columns by name."""
        outbox = relation.name == "outbox"
        if relation.schema != SCHEMA or relation.name not in {"outbox", "event"}:
            raise DatabaseError(f"the relay's publication holds a foreign table, {relation.schema}.{relation.name}")
        places = [relation.names.index(name) for name in (_OUTBOX if outbox else _EVENT)]
        found = self._tables[relation.id] = (relation, outbox, itemgetter(*places))
        return found


def _plain(seq: int, topic: bytes, key: bytes, headers: bytes | None, payload: bytes | None) -> OutboxRow:
    return OutboxRow(seq, None, topic.decode(), key.decode(), payload, json=headers)


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)
