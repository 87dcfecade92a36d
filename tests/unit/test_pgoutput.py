"""The decoder of pgoutput on recorded bytes (PostgreSQL 18.4), on what is cut short, and on what cannot be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import DatabaseError
from outbox.relay.pgoutput import (
    UNCHANGED,
    Delete,
    Insert,
    Logical,
    Origin,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    Truncate,
    Update,
)
from outbox.relay.pgoutput_decoder import Decoder
from outbox.relay.replication import lsn_number, lsn_text

RECORDED = [bytes.fromhex(line) for line in Path(__file__).with_name("test_pgoutput_recorded.hex").read_text().split()]
"""Three transactions of many statements and one that was streamed, with a subtransaction rolled back; of each of its
blocks the first rows."""


def decoded():
    decoder = Decoder()
    return [decoder.decode(data) for data in RECORDED]


def test_the_recorded_kinds_come_in_their_order():
    kinds = "".join(
        {
            "Logical": "M",
            "TypeName": "Y",
            "StreamStop": "E",
            "StreamStart": "S",
            "StreamCommit": "c",
            "StreamAbort": "A",
        }.get(type(m).__name__, type(m).__name__[0])
        for m in decoded()
    )
    assert kinds == b"".join(data[:1] for data in RECORDED).decode()
    assert kinds.startswith("BYRIIUUDCBRIUDMYRRTCBOYRICSRIIIIES")


def test_recorded_rows_hold_text_null_unchanged_and_old_keys():
    rows = [m for m in decoded() if isinstance(m, Insert | Update | Delete) and not m.xid]
    values = [tuple(part for part in m[1:-1] if part is not None) for m in rows]
    assert values == [
        (("1", "ä", "x" * 3000, "glad"),),
        (("2", None, "", None),),
        (("1", "b", UNCHANGED, "glad"),),
        (("1", None, None, None), "K", ("3", "b", UNCHANGED, "glad")),
        (("2", None, None, None), "K"),
        (("1", "v"),),
        (("1", "v"), "O", ("1", None)),
        (("1", None), "O"),
        (("4", "n", "", None, "1.50"),),
    ]


def test_recorded_tables_carry_names_types_and_keys_and_change_in_mid_stream():
    shop = [m for m in decoded() if isinstance(m, Relation) and m.name == "shop"]
    assert shop[0].names == ("k", "name", "big", "m")
    assert shop[-1].names == ("k", "name", "big", "m", "price")
    assert [column.type_oid for column in shop[0].columns] == [23, 25, 25, 16386]
    assert [column.key for column in shop[0].columns] == [True, False, False, False]
    assert (shop[0].schema, shop[0].identity) == ("public", "d")


def test_recorded_truncate_origin_and_message():
    messages = decoded()
    (truncate,) = [m for m in messages if isinstance(m, Truncate)]
    assert ([r.name for r in truncate.relations], truncate.cascade) == (["shop", "full_"], True)
    assert Origin(16, "elsewhere") in messages
    (logical,) = [m for m in messages if isinstance(m, Logical)]
    assert logical[2:] == ("note", b"\0\xff", 0) and logical.transactional


def test_in_a_recorded_stream_each_row_names_its_subtransaction():
    messages = decoded()
    (abort,) = [m for m in messages if isinstance(m, StreamAbort)]
    (commit,) = [m for m in messages if isinstance(m, StreamCommit)]
    assert {m.xid for m in messages if isinstance(m, StreamStart)} == {commit.xid} == {abort.xid}
    streamed = [m for m in messages if isinstance(m, Insert) and m.xid]
    assert {m.new[1] for m in streamed if m.xid == abort.subxid} <= {"lost"}
    assert [m.new[1] for m in streamed if m.xid != abort.subxid] == ["kept"] * 8 + ["more"] * 4


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_a_message_cut_short_or_too_long_is_refused_in_one_line(number):
    data = RECORDED[number]
    for broken in [*(data[:end] for end in range(min(len(data), 40))), data[:-1], data + b"\0"]:
        decoder = Decoder()
        for earlier in RECORDED[:number]:
            decoder.decode(earlier)
        with pytest.raises(DatabaseError) as caught:
            decoder.decode(broken)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"?", "of unknown kind b'\\?'"),
        (b"I" + struct.pack("!I", 99) + b"N\0\0", "about an unknown table 99"),
        (b"b" + b"\0" * 40, "of unknown kind b'b'"),  # two-phase, which is not asked for
    ],
)
def test_what_was_not_asked_for_is_named(data, said):
    with pytest.raises(DatabaseError, match=said):
        Decoder().decode(data)


def described(id_=7, columns=1, name=b"t"):
    one = b"\1c\0" + struct.pack("!Ii", 25, -1)
    return b"R" + struct.pack("!I", id_) + b"\0" + name + b"\0d" + struct.pack("!H", columns) + one * columns


def packed(values):
    parts = [struct.pack("!H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            raw = value.encode() if isinstance(value, str) else value
            parts.append((b"t" if isinstance(value, str) else b"b") + struct.pack("!I", len(raw)) + raw)
    return b"".join(parts)


VALUES = st.lists(st.one_of(st.none(), st.just(UNCHANGED), st.text(), st.binary()), max_size=12).map(tuple)


@given(old=st.none() | VALUES, kind=st.sampled_from("KO"), new=VALUES)
def test_whatever_the_values_they_come_back(old, kind, new):
    decoder = Decoder()
    relation = decoder.decode(described())
    before = b"" if old is None else kind.encode() + packed(old)
    update = decoder.decode(b"U" + struct.pack("!I", 7) + before + b"N" + packed(new))
    assert update == Update(relation, old, None if old is None else kind, new, 0)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data):
    decoder = Decoder()
    decoder.decode(described())
    try:
        decoder.decode(data)
    except DatabaseError as error:
        assert "\n" not in str(error)


def test_a_table_of_the_system_is_in_pg_catalog():
    assert Decoder().decode(described()).schema == "pg_catalog"


def test_a_table_described_in_a_stream_is_unknown_outside_until_the_stream_commits():
    insert = b"I" + struct.pack("!I", 7) + b"N" + packed(("v",))
    for end, known in ((b"c" + struct.pack("!IBQQq", 5, 0, 1, 2, 3), True), (b"A" + struct.pack("!II", 5, 5), False)):
        decoder = Decoder()
        decoder.decode(described(name=b"old"))
        decoder.decode(b"S" + struct.pack("!IB", 5, 1))
        decoder.decode(b"R" + struct.pack("!I", 6) + described(name=b"new")[1:])
        assert decoder.decode(b"I" + struct.pack("!I", 6) + insert[1:]).relation.name == "new"
        decoder.decode(b"E")
        assert decoder.decode(insert).relation.name == "old"
        decoder.decode(end)
        assert decoder.decode(insert).relation.name == ("new" if known else "old")


@given(st.integers(0, 2**64 - 1))
def test_positions_in_the_log_are_written_as_postgres_writes_them(lsn):
    assert lsn_number(lsn_text(lsn)) == lsn


def test_a_position_in_the_log_looks_like_this():
    assert lsn_text(0x16B374D848) == "16/B374D848"
