"""Reads pgoutput's bytes. Does no I/O: bytes in, messages out, so that recorded streams test it as live ones do.

Source: PostgreSQL manual, "Logical Replication Message Formats" and "Logical Streaming Replication Parameters"
(``proto_version`` 1 and 2, ``streaming`` off or on, ``binary`` off or on, ``messages`` off or on).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, Literal

from outbox.errors import DatabaseError
from outbox.relay.pgoutput import (
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Decoded,
    Delete,
    Insert,
    Logical,
    Origin,
    Relation,
    Row,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    TypeName,
    Update,
    Value,
)

_SHORT: Final = struct.Struct("!H").unpack_from
_INT: Final = struct.Struct("!I").unpack_from
_LONG: Final = struct.Struct("!Q").unpack_from
_BEGIN: Final = struct.Struct("!QqI").unpack_from
_COMMIT: Final = struct.Struct("!BQQq").unpack_from
_ATTRIBUTE: Final = struct.Struct("!Ii").unpack_from
_LOGICAL: Final = struct.Struct("!BQ").unpack_from
_TWO: Final = struct.Struct("!II").unpack_from
_STREAM_COMMIT: Final = struct.Struct("!IBQQq").unpack_from
_TEXT, _BINARY, _NULL, _TOAST = b"tbnu"
_NEW, _KEY, _OLD = b"NKO"
_KEY_FLAG: Final = 1
_CASCADE, _RESTART_IDENTITY = 1, 2
_SYSTEM_SCHEMA: Final = "pg_catalog"
_OLD_IS: Final[Mapping[int, Literal["K", "O"]]] = {_KEY: "K", _OLD: "O"}


class Decoder:
    """One for each replication connection: it remembers the tables the server has described on it.

    A table described inside a streamed transaction is known to that transaction alone until it commits, and
    forgotten if it is rolled back: so the server reckons too.
    """

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._streamed: dict[int, dict[int, Relation]] = {}
        self._stream = 0
        readers: dict[str, Callable[[bytes], Decoded]] = {
            "I": self._insert,
            "U": self._update,
            "D": self._delete,
            "B": _begin,
            "C": _commit,
            "R": self._relation,
            "T": self._truncate,
            "Y": self._type,
            "O": _origin,
            "M": self._logical,
            "S": self._stream_start,
            "E": self._stream_stop,
            "c": self._stream_commit,
            "A": self._stream_abort,
        }
        self._readers = {ord(tag): reader for tag, reader in readers.items()}

    def decode(self, data: bytes) -> Decoded:
        """The one message in ``data`` (the payload of an XLogData frame).

        Raises :class:`~outbox.errors.DatabaseError` if it is cut short, too long, of an unknown kind, or speaks of a
        table that was not described.
        """
        try:
            return self._readers[data[0]](data)
        except KeyError as error:
            kind = data[:1]
            reason = f"of unknown kind {kind!r}" if data[0] not in self._readers else f"about an unknown table {error}"
            raise DatabaseError(f"PostgreSQL sent a replication message {reason}") from error
        except (struct.error, ValueError, IndexError) as error:  # bad UTF-8 is a ValueError
            raise DatabaseError(f"PostgreSQL sent a malformed replication message {data[:1]!r}: {error}") from error

    def _begun(self, data: bytes) -> tuple[int, int]:
        """The subtransaction, which is told inside a stream only, and where the message goes on."""
        return (_INT(data, 1)[0], 5) if self._stream else (0, 1)

    def _known(self, id_: int) -> Relation:
        if self._stream and (found := self._streamed[self._stream].get(id_)) is not None:
            return found
        return self._relations[id_]

    # Rows: the path that must be quick, so the parts are written out.

    def _insert(self, data: bytes) -> Insert:
        xid, at = self._begun(data) if self._stream else (0, 1)
        relation = self._known(_INT(data, at)[0])
        if data[at + 4] != _NEW:
            raise ValueError("an insert without its row")
        new, end = _row(data, at + 5)
        if end != len(data):
            _ended(data, end)
        return Insert(relation, new, xid)

    def _update(self, data: bytes) -> Update:
        xid, at = self._begun(data)
        relation = self._known(_INT(data, at)[0])
        at += 4
        old, old_is = None, _OLD_IS.get(data[at])
        if old_is:
            old, at = _row(data, at + 1)
        _expect(data[at] == _NEW, "an update without its row")
        new, end = _row(data, at + 1)
        _ended(data, end)
        return Update(relation, old, old_is, new, xid)

    def _delete(self, data: bytes) -> Delete:
        xid, at = self._begun(data)
        relation = self._known(_INT(data, at)[0])
        old_is = _OLD_IS.get(data[at + 4])
        if old_is is None:
            raise ValueError("a delete without its key")
        old, end = _row(data, at + 5)
        _ended(data, end)
        return Delete(relation, old, old_is, xid)

    def _truncate(self, data: bytes) -> Truncate:
        xid, at = self._begun(data)
        count, flags = _INT(data, at)[0], data[at + 4]
        ids = struct.unpack_from(f"!{count}I", data, at + 5)
        _ended(data, at + 5 + 4 * count)
        relations = tuple(self._known(id_) for id_ in ids)
        return Truncate(relations, bool(flags & _CASCADE), bool(flags & _RESTART_IDENTITY), xid)

    def _relation(self, data: bytes) -> Relation:
        xid, at = self._begun(data)
        (id_,) = _INT(data, at)
        schema, at = _text(data, at + 4)
        name, at = _text(data, at)
        identity, (count,) = chr(data[at]), _SHORT(data, at + 1)
        columns, end = _columns(data, at + 3, count)
        _ended(data, end)
        relation = Relation(id_, schema or _SYSTEM_SCHEMA, name, identity, columns, xid)
        (self._streamed[self._stream] if self._stream else self._relations)[id_] = relation
        return relation

    def _type(self, data: bytes) -> TypeName:
        xid, at = self._begun(data)
        schema, after = _text(data, at + 4)
        name, end = _text(data, after)
        _ended(data, end)
        return TypeName(_INT(data, at)[0], schema or _SYSTEM_SCHEMA, name, xid)

    def _logical(self, data: bytes) -> Logical:
        xid, at = self._begun(data)
        flags, lsn = _LOGICAL(data, at)
        prefix, at = _text(data, at + 9)
        end = at + 4 + _INT(data, at)[0]
        _ended(data, end)
        return Logical(bool(flags & 1), lsn, prefix, data[at + 4 : end], xid)

    def _stream_start(self, data: bytes) -> StreamStart:
        _expect(not self._stream, "a stream block within another")
        (xid,) = _INT(data, 1)
        first = bool(data[5])
        _ended(data, 6)
        self._stream = xid
        self._streamed.setdefault(xid, {})
        return StreamStart(xid, first)

    def _stream_stop(self, data: bytes) -> StreamStop:
        _ended(data, 1)
        self._stream = 0
        return StreamStop()

    def _stream_commit(self, data: bytes) -> StreamCommit:
        xid, _, lsn, end_lsn, at_us = _STREAM_COMMIT(data, 1)
        _ended(data, 30)
        self._relations.update(self._streamed.pop(xid, {}))
        return StreamCommit(xid, lsn, end_lsn, at_us)

    def _stream_abort(self, data: bytes) -> StreamAbort:
        xid, subxid = _TWO(data, 1)
        _ended(data, 9)
        if xid == subxid:
            self._streamed.pop(xid, None)
        return StreamAbort(xid, subxid)


def _begin(data: bytes) -> Begin:
    _ended(data, 21)
    return Begin(*_BEGIN(data, 1))


def _commit(data: bytes) -> Commit:
    _ended(data, 26)
    _, lsn, end_lsn, at_us = _COMMIT(data, 1)
    return Commit(lsn, end_lsn, at_us)


def _origin(data: bytes) -> Origin:
    name, end = _text(data, 9)
    _ended(data, end)
    return Origin(_LONG(data, 1)[0], name)


def _row(data: bytes, at: int) -> tuple[Row, int]:
    """A TupleData: the values, and where the message goes on."""
    (count,) = _SHORT(data, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at]
        if kind == _BINARY:
            begin = at + 5
            at = begin + _INT(data, at + 1)[0]
            values.append(data[begin:at])
        elif kind == _TEXT:
            begin = at + 5
            at = begin + _INT(data, at + 1)[0]
            values.append(data[begin:at].decode())
        elif kind == _NULL:
            values.append(None)
            at += 1
        elif kind == _TOAST:
            values.append(UNCHANGED)
            at += 1
        else:
            raise ValueError(f"a column of unknown kind {kind}")
    return tuple(values), at


def _columns(data: bytes, at: int, count: int) -> tuple[tuple[Column, ...], int]:
    columns = []
    for _ in range(count):
        key = bool(data[at] & _KEY_FLAG)
        name, at = _text(data, at + 1)
        type_oid, type_modifier = _ATTRIBUTE(data, at)
        columns.append(Column(name, type_oid, type_modifier, key))
        at += 8
    return tuple(columns), at


def _text(data: bytes, at: int) -> tuple[str, int]:
    """A string that a zero byte ends."""
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def _ended(data: bytes, end: int) -> None:
    if end != len(data):
        raise ValueError(f"{len(data)} bytes where {end} were announced")


def _expect(fact: bool, otherwise: str) -> None:
    if not fact:
        raise ValueError(otherwise)
