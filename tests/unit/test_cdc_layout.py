"""Transactions read straight out of the stream's bytes: the same as by way of the decoder, whatever the bytes are."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.relay.cdc_rows import Assembly
from outbox.relay.pgoutput_decoder import Decoder

BIGINT, TEXT, BYTEA, UUID, TIME, XID, JSONB = 20, 25, 17, 2950, 1184, 5069, 3802
OUTBOX = {"seq": BIGINT, "xid": XID, "position": BIGINT, "topic": TEXT, "key": TEXT, "headers": JSONB, "payload": BYTEA}
EVENT = {
    "position": BIGINT, "xid": XID, "stream": TEXT, "version": BIGINT, "type": TEXT, "id": UUID, "data": BYTEA,
    "meta": JSONB, "at": TIME,
}  # fmt: skip
ID = uuid.UUID("019ab3c0-1234-7234-8234-0123456789ab")
TRANSACTION = 2**32 + 7
BEGIN = b"B" + bytes(20)


def commit(end_lsn: int) -> bytes:
    return struct.pack("!cBQQq", b"C", 0, 1, end_lsn, 0)


def table(number: int, name: str, columns: dict[str, int], block: bytes = b"") -> bytes:
    described = b"".join(
        b"\0%b\0%b" % (column.encode(), struct.pack("!Ii", oid, -1)) for column, oid in columns.items()
    )
    named = b"outbox\0%b\0d" % name.encode()
    return b"R" + block + struct.pack("!I", number) + named + struct.pack("!H", len(columns)) + described


def insert(number: int, *values: bytes | None, block: bytes = b"") -> bytes:
    columns = [b"n" if value is None else b"b" + struct.pack("!I", len(value)) + value for value in values]
    return b"I" + block + struct.pack("!IcH", number, b"N", len(columns)) + b"".join(columns)


def number(value: int) -> bytes:
    return struct.pack("!q", value)


def event(position: int, stream: str = "s-1", block: bytes = b"") -> bytes:
    written = number(position), number(TRANSACTION), stream.encode(), number(3), b"t"
    return insert(2, *written, ID.bytes, b"data", b'\1{"a": 1}', number(-5), block=block)


def row(seq: int, position: int, block: bytes = b"") -> bytes:
    return insert(1, number(seq), number(TRANSACTION), number(position), None, None, None, None, block=block)


def plain(seq: int) -> bytes:
    return insert(1, number(seq), number(TRANSACTION), None, b"topic", b"key", None, b"payload")


TABLES = [table(1, "outbox", OUTBOX), table(2, "event", EVENT)]
SWAPPED = {{"stream": "type", "type": "stream"}.get(name, name): oid for name, oid in EVENT.items()}
BLOCK = struct.pack("!I", 9)
STREAM_COMMIT = b"c" + BLOCK + struct.pack("!BQQq", 0, 1, 200, 0)
ONE = [BEGIN, event(11), row(1, 11), commit(100)]


def taken(*messages: bytes) -> list[object]:
    """What comes of them, by the quick way; the error that ends them."""
    assembly = Assembly("p")
    return outcomes(assembly.take, messages)


def decoded(*messages: bytes) -> list[object]:
    """The same, by way of the decoder."""
    assembly, decoder = Assembly("p"), Decoder()
    return outcomes(lambda message: assembly.feed(decoder.decode(message), len(message)), messages)


def outcomes(take, messages) -> list[object]:
    found: list[object] = []
    for message in messages:
        try:
            found.append(take(message))
        except Exception as error:
            return [*found, type(error)]
    return found


def test_an_event_is_read_whole():
    (committed,) = [found for found in taken(*TABLES, *ONE, *ONE) if found][1:]
    assert (committed.lsn, committed.xid) == (100, TRANSACTION)
    assert committed.rows == [(1, 11, "p.s", "s-1", b"data", 3, "t", str(ID), -5, b'\1{"a": 1}')]


@pytest.mark.parametrize(
    "messages",
    [
        [*ONE, *ONE],
        [BEGIN, event(11), event(12), row(2, 12), row(1, 11), commit(1)],
        [*ONE, BEGIN, plain(7), event(13), row(8, 13), commit(2)],
        [*ONE, BEGIN, row(2, 11), commit(2)],
        [*ONE, BEGIN, event(12), commit(2), *ONE],
        [*ONE, BEGIN, event(12, "s-1\xff"), row(2, 12), commit(2)],
        [*ONE, table(2, "event", SWAPPED), *ONE],
        [*ONE, b"S" + BLOCK + b"\1", table(2, "event", SWAPPED, BLOCK), b"E", *ONE, STREAM_COMMIT, *ONE],
        [*ONE, table(3, "other", OUTBOX), BEGIN, insert(3, b"")],
        [*ONE, BEGIN, insert(4, b"")],
    ],
    ids=["again", "two", "plain", "earlier", "no row", "ü", "swapped", "swapped in a stream", "foreign", "unknown"],
)
def test_transactions_are_as_the_decoder_has_them(messages):
    assert taken(*TABLES, *ONE, *messages) == decoded(*TABLES, *ONE, *messages)


@given(st.sampled_from(ONE), st.integers(0, 300), st.binary(max_size=3), st.integers(0, 3))
@settings(derandomize=True, max_examples=1_000)
def test_damaged_messages_are_refused_as_the_decoder_refuses_them(message, at, instead, left_out):
    damaged = message[:at] + instead + message[at + left_out :]
    messages = [*TABLES, *ONE, *(damaged if each is message else each for each in ONE)]
    assert taken(*messages) == decoded(*messages)


def test_inside_a_stream_block_rows_name_their_transaction_and_after_it_they_do_not():
    streamed = [b"S" + BLOCK + b"\1", event(21, block=BLOCK), row(5, 21, BLOCK), b"E"]
    found = [each for each in taken(*TABLES, *ONE, *streamed, *ONE, STREAM_COMMIT, *ONE) if each]
    assert [(each.lsn, each.rows is None) for each in found] == [(100, False), (100, False), (200, True), (100, False)]
    assert found == [each for each in decoded(*TABLES, *ONE, *streamed, *ONE, STREAM_COMMIT, *ONE) if each]


def test_once_the_tables_are_known_the_decoder_is_not_asked(monkeypatch):
    assembly = Assembly("p")
    for message in [*TABLES, b"S" + BLOCK + b"\1", b"E", *ONE]:
        assembly.take(message)
    monkeypatch.setattr(assembly, "_decoder", None)
    assert [assembly.take(message) for message in ONE][-1].rows[0].position == 11
