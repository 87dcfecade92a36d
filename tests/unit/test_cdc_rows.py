"""Rows of the outbox out of decoded messages."""

from __future__ import annotations

import struct
import uuid

import pytest

from outbox.errors import DatabaseError
from outbox.relay.cdc_rows import Assembly
from outbox.relay.pgoutput import (
    Begin,
    Column,
    Commit,
    Insert,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
)


def table(name, *columns, schema="outbox"):
    return Relation(1 if name == "outbox" else 2, schema, name, "d", tuple(Column(c, 25, -1, False) for c in columns))


OUTBOX = table("outbox", "seq", "xid", "position", "topic", "key", "headers", "payload")
EVENT = table("event", "position", "xid", "stream", "version", "type", "id", "data", "meta", "at")
XID = 2**32 + 7


def number(n):
    return struct.pack("!q", n)


def event(position, stream="s-1", version=1, xid=0):
    id_ = uuid.UUID(int=position).bytes
    values = (number(position), number(XID), stream.encode(), number(version), b"t", id_, b"data", b"\1{}", number(0))
    return Insert(EVENT, values, xid)


def row(seq, position=None, key="k", xid=0):
    if position is not None:
        return Insert(OUTBOX, (number(seq), number(XID), number(position), None, None, None, None), xid)
    return Insert(OUTBOX, (number(seq), number(XID), None, b"t", key.encode(), b'\1{"h": "v"}', b"p"), xid)


def fed(assembly, *messages):
    found = [assembly.feed(message, 10) for message in messages]
    assert found[:-1] == [None] * (len(found) - 1)
    return found[-1]


def test_rows_come_by_their_number_whatever_order_they_were_written_in():
    """As COPY does when the ring goes round: it writes the first part before the last one."""
    committed = fed(Assembly("p"), Begin(9, 0, 7), event(1), event(2), row(6), row(5, 2), row(4, 1), Commit(9, 10, 0))
    assert (committed.lsn, committed.xid) == (10, XID)
    assert [(r.seq, r.position, r.key) for r in committed.rows] == [
        (4, 1, "s-1"),
        (5, 2, "s-1"),
        (6, None, "k"),
    ]
    assert committed.rows[0].topic == "p.s"


def test_a_transaction_without_rows_for_the_outbox_only_moves_the_log_on():
    committed = fed(Assembly("p"), Begin(9, 0, 7), event(1), Commit(9, 10, 0))
    assert (committed.lsn, committed.xid, committed.rows) == (10, None, [])


def test_nothing_of_one_transaction_is_left_for_the_next():
    assembly = Assembly("p")
    fed(assembly, Begin(9, 0, 7), event(1), row(1, 1), Commit(9, 10, 0))
    committed = fed(assembly, Begin(19, 0, 8), row(2, 1), Commit(19, 20, 0))
    assert committed.rows is None, "its event is of another transaction: to be read from the table"
    assert fed(assembly, Begin(29, 0, 9), row(3), Commit(29, 30, 0)).rows[0].seq == 3


def test_of_streamed_transactions_only_the_ids_are_kept_each_for_itself():
    assembly = Assembly("p")
    fed(assembly, StreamStart(7, True), event(1, xid=7), row(1, 1, xid=7), StreamStop())
    fed(assembly, StreamStart(8, True), event(2, xid=8), StreamStop())
    assert fed(assembly, Begin(1, 0, 9), row(9), Commit(1, 2, 0)).rows[0].seq == 9
    assert fed(assembly, StreamAbort(7, 70)) is None
    whole = fed(assembly, StreamCommit(7, 9, 10, 0))
    assert (whole.lsn, whole.xid, whole.rows) == (10, XID, None)
    without = fed(assembly, StreamCommit(8, 19, 20, 0))
    assert (without.lsn, without.xid, without.rows) == (20, None, [])


def test_columns_are_found_by_name_and_anew_when_the_table_has_changed():
    assembly = Assembly("p")
    fed(assembly, Begin(1, 0, 9), row(1), Commit(1, 2, 0))
    changed = table("outbox", "more", "payload", "headers", "key", "topic", "position", "xid", "seq")
    values = (b"?", b"p", None, b"k", b"t", None, number(XID), number(2))
    committed = fed(assembly, Begin(1, 0, 9), Insert(changed, values, 0), Commit(1, 2, 0))
    assert (committed.rows[0].seq, committed.rows[0].topic) == (2, "t")


def test_a_table_that_somebody_added_to_the_publication_is_named():
    foreign = table("t", "a", schema="public")
    with pytest.raises(DatabaseError, match=r"foreign table, public\.t"):
        fed(Assembly("p"), Begin(1, 0, 9), Insert(foreign, (b"1",), 0))
