"""The decoder of pgoutput on live streams: what another session did is what comes out."""

from __future__ import annotations

import uuid
from contextlib import contextmanager

import psycopg
import pytest

from outbox.database import connected
from outbox.relay.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Logical,
    Origin,
    Relation,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    TypeName,
    Update,
)
from outbox.relay.pgoutput_decoder import Decoder
from outbox.relay.replication import Replication
from tests.relaying import until, without_slots

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN small AS int CHECK (value < 100);
CREATE TABLE every (
    k bigint PRIMARY KEY, a smallint, b int, c real, d double precision, e numeric(20, 5), f boolean, g char(3),
    h varchar(9), i text, j bytea, k2 uuid, l date, m time, n timestamptz, o interval, p json, q jsonb, r int[],
    s text[], t inet, u mood, v small, w int4range, x xid8, y money, z point
);
"""
VALUES = """
INSERT INTO every VALUES (
    1, -2, 3, 1.5, 'NaN', 12345.67890, true, 'ab', 'ä', '', '\\x00ff', '00000000-0000-0000-0000-0000000000aa',
    '2026-02-28', '12:34:56.789', '2026-02-28 12:00:00.000001+00', '1 day 2 hours', '{"a": 1}', '{"b": [1]}', '{1,null}',
    '{"x y",z}', '10.0.0.1/8', 'glad', 42, '[1,5)', '12345678901', 1.25, '(1,2)'
);
INSERT INTO every VALUES (2)
"""
AS_TEXT = (
    "1", "-2", "3", "1.5", "NaN", "12345.67890", "t", "ab ", "ä", "", "\\x00ff", "00000000-0000-0000-0000-0000000000aa",
    "2026-02-28", "12:34:56.789", "2026-02-28 12:00:00.000001+00", "1 day 02:00:00", '{"a": 1}', '{"b": [1]}', "{1,NULL}",
    '{"x y",z}', "10.0.0.1/8", "glad", "42", "[1,5)", "12345678901", "$1.25", "(1,2)",
)  # fmt: skip


class Live:
    """A slot and what has come through it so far."""

    def __init__(self, dsn, connection, options):
        self.connection = connection
        self.replication = Replication(dsn, connection)
        self.decoder = Decoder()
        self.options = {"proto_version": "2", "publication_names": "live", **options}
        self.raw = []

    def open(self):
        self.connection.execute("CREATE PUBLICATION live FOR ALL TABLES WITH (publish_via_partition_root = true)")
        self.replication.make_slot(self.connection.info.dbname)
        made = until(self.replication.made)
        self.replication.start(made.name, made.lsn, self.options)

    def commits(self, count=1):
        """All messages up to this many commits from here on."""
        return self.take(count, Commit | StreamCommit)

    def take(self, count, kind):
        """All messages up to this many of a kind."""
        found = []

        def enough():
            while sum(isinstance(m, kind) for m in found) < count:
                raw = self.replication.receive()
                if raw is None:
                    return False
                self.raw.append(raw)
                found.append(self.decoder.decode(raw))
            return True

        until(enough)
        return found


@contextmanager
def live(dsn, **options):
    with without_slots(dsn), connected(dsn) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{name}\" SET logical_decoding_work_mem = '64kB'")
        connection.execute("SET timezone = 'UTC'")
        connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'UTC'")
        stream = Live(dsn, connection, options)
        try:
            yield stream
        finally:
            stream.replication.close()


@pytest.fixture
def writer(empty_database):
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


def rows(messages):
    return [m.new for m in messages if isinstance(m, Insert)]


def test_every_type_comes_as_the_text_psql_shows(empty_database, writer):
    writer.execute(TYPES)
    with live(empty_database) as stream:
        stream.open()
        writer.execute(VALUES)
        messages = stream.commits()
    assert [type(m) for m in messages if not isinstance(m, TypeName)] == [Begin, Relation, Insert, Insert, Commit]
    assert {m.name for m in messages if isinstance(m, TypeName)} == {"mood", "int4"}, (
        "a domain is told as what it is made of"
    )
    first, second = rows(messages)
    assert first == AS_TEXT
    assert second == ("2", *[None] * 26)
    relation = next(m for m in messages if isinstance(m, Relation))
    oids = writer.execute(
        "SELECT attname, atttypid::bigint, atttypmod, attname = 'k' FROM pg_attribute"
        " WHERE attrelid = 'every'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()
    assert [tuple(column) for column in relation.columns] == oids
    assert (relation.schema, relation.name, relation.identity) == ("public", "every", "d")


def test_with_binary_on_values_come_as_bytes_and_are_what_psycopg_reads(empty_database, writer):
    from psycopg import pq
    from psycopg.adapt import Transformer

    writer.execute("CREATE TABLE t (a bigint PRIMARY KEY, b timestamptz, c jsonb, d uuid, e bytea, f text)")
    with live(empty_database, binary="true") as stream:
        stream.open()
        writer.execute(
            "INSERT INTO t VALUES (7, '2026-01-02 03:04:05.000006+00', '{\"x\": 1}', %s, %s, 'ä')",
            [uuid.UUID(int=5), b"\0\xff"],
        )
        messages = stream.commits()
    relation, insert = messages[1], messages[2]
    transformer = Transformer(writer)
    loaded = [
        transformer.get_loader(column.type_oid, pq.Format.BINARY).load(value)
        for column, value in zip(relation.columns, insert.new, strict=True)
    ]
    assert loaded == list(writer.execute("SELECT * FROM t").fetchone())
    assert all(isinstance(value, bytes) for value in insert.new)


def test_updates_and_deletes_carry_what_the_replica_identity_says(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE full_ (k int, v text)")
    writer.execute("ALTER TABLE full_ REPLICA IDENTITY FULL")
    with live(empty_database) as stream:
        stream.open()
        with writer.transaction():
            writer.execute("INSERT INTO t VALUES (1, 'a'); INSERT INTO full_ VALUES (1, 'a')")
            writer.execute("UPDATE t SET v = 'b'; UPDATE t SET k = 2; DELETE FROM t")
            writer.execute("UPDATE full_ SET v = NULL; DELETE FROM full_")
        changes = [m[1:] for m in stream.commits() if isinstance(m, Update | Delete)]
    assert changes == [
        (None, None, ("1", "b"), 0),
        (("1", None), "K", ("2", "b"), 0),
        (("2", None), "K", 0),
        (("1", "a"), "O", ("1", None), 0),
        (("1", None), "O", 0),
    ]


def test_a_toasted_value_that_an_update_leaves_alone_is_told_from_null(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY, big text, n int)")
    writer.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    with live(empty_database) as stream:
        stream.open()
        writer.execute("INSERT INTO t VALUES (1, repeat('x', 100000), 1)")
        assert rows(stream.commits()) == [("1", "x" * 100_000, "1")]
        writer.execute("UPDATE t SET n = NULL")
        (update,) = [m for m in stream.commits() if isinstance(m, Update)]
        assert update.new == ("1", UNCHANGED, None)
        writer.execute("UPDATE t SET big = 'short'")
        (update,) = [m for m in stream.commits() if isinstance(m, Update)]
        assert update.new == ("1", "short", None)


def test_a_table_changed_in_mid_stream_is_described_anew(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY)")
    with live(empty_database) as stream:
        stream.open()
        with writer.transaction():
            writer.execute("INSERT INTO t VALUES (1)")
            writer.execute("ALTER TABLE t ADD COLUMN v text DEFAULT 'd'")
            writer.execute("INSERT INTO t VALUES (2, 'two')")
        writer.execute("ALTER TABLE t DROP COLUMN v, ADD COLUMN w int; ALTER TABLE t RENAME TO u")
        writer.execute("INSERT INTO u VALUES (3, 4)")
        inserts = [m for m in stream.commits(2) if isinstance(m, Insert)]
    assert [(i.relation.name, dict(zip(i.relation.names, i.new, strict=True))) for i in inserts] == [
        ("t", {"k": "1"}),
        ("t", {"k": "2", "v": "two"}),
        ("u", {"k": "3", "w": "4"}),
    ]


def test_truncate_origin_and_messages_come_through(empty_database, writer):
    writer.execute("CREATE TABLE a (k serial PRIMARY KEY); CREATE TABLE b (k int PRIMARY KEY REFERENCES a)")
    writer.execute("SELECT pg_replication_origin_create('elsewhere')")
    try:
        with live(empty_database, messages="true") as stream:
            stream.open()
            writer.execute("SELECT pg_replication_origin_session_setup('elsewhere')")
            with writer.transaction():
                writer.execute("SELECT pg_replication_origin_xact_setup('0/10', now())")
                writer.execute("INSERT INTO a DEFAULT VALUES")
                writer.execute("SELECT pg_logical_emit_message(true, 'p', '\\x00ff'::bytea)")
                writer.execute("TRUNCATE a RESTART IDENTITY CASCADE")
            messages = stream.commits()
    finally:
        writer.execute("SELECT pg_replication_origin_session_reset()")
        writer.execute("SELECT pg_replication_origin_drop('elsewhere')")
    assert Origin(0x10, "elsewhere") in messages
    (logical,) = [m for m in messages if isinstance(m, Logical)]
    assert (logical.transactional, logical.prefix, logical.content) == (True, "p", b"\0\xff")
    (truncate,) = [m for m in messages if isinstance(m, Truncate)]
    assert {r.name for r in truncate.relations} == {"a", "b"}
    assert truncate.restart_identity


def test_a_message_outside_any_transaction_comes_too(empty_database, writer):
    writer.execute("CREATE TABLE a (k int PRIMARY KEY)")
    with live(empty_database, messages="true") as stream:
        stream.open()
        writer.execute("SELECT pg_logical_emit_message(false, 'p', 'now')")
        writer.execute("INSERT INTO a VALUES (1)")
        first = stream.commits()[0]
    assert (first.transactional, first.prefix, first.content) == (False, "p", b"now")


def test_a_large_transaction_is_streamed_before_it_commits_and_tells_what_was_rolled_back(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY, v text)")
    with live(empty_database, streaming="on") as stream:
        stream.open()
        with psycopg.connect(empty_database) as large:
            large.execute("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 2000) n")
            large.execute("SAVEPOINT s")
            large.execute("INSERT INTO t SELECT n, repeat('y', 100) FROM generate_series(2001, 4000) n")
            large.execute("ROLLBACK TO s")
            large.execute("ALTER TABLE t ADD COLUMN w int")
            large.execute("INSERT INTO t SELECT n, repeat('z', 100), 7 FROM generate_series(4001, 6000) n")
        messages = stream.commits()
        writer.execute("INSERT INTO t VALUES (9999, 'after', 8)")
        (after,) = [m for m in stream.commits() if isinstance(m, Insert)]
    starts = [m for m in messages if isinstance(m, StreamStart)]
    assert len(starts) > 1
    assert [m.first for m in starts] == [True] + [False] * (len(starts) - 1)
    assert len({m.xid for m in starts}) == 1
    assert sum(isinstance(m, StreamStop) for m in messages) == len(starts)
    aborted = {m.subxid for m in messages if isinstance(m, StreamAbort)}
    inserts = [m for m in messages if isinstance(m, Insert)]
    assert any(i.xid in aborted for i in inserts), "nothing of what was rolled back had been streamed"
    kept = [i for i in inserts if i.xid not in aborted]
    assert [int(i.new[0]) for i in kept] == [*range(1, 2001), *range(4001, 6001)]
    assert {len(i.new) for i in kept[:2000]} == {2}
    assert {i.new[2] for i in kept[2000:]} == {"7"}
    assert dict(zip(after.relation.names, after.new, strict=True)) == {"k": "9999", "v": "after", "w": "8"}


def test_streamed_transactions_that_run_at_once_and_one_rolled_back_whole_are_kept_apart(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY, v text)")
    with live(empty_database, streaming="on") as stream:
        stream.open()
        with psycopg.connect(empty_database) as one, psycopg.connect(empty_database) as two:
            for n in range(4):
                for base, connection in ((0, one), (100_000, two)):
                    connection.execute(
                        "INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(%s::int, %s) n",
                        [base + n * 1000, base + n * 1000 + 999],
                    )
            # What was streamed before it was rolled back; a server that knows already streams nothing of it.
            messages = []
            while len({m.xid for m in messages if isinstance(m, StreamStart)}) < 2:
                messages += stream.take(1, StreamStop)
            two.rollback()
        messages += stream.take(1, StreamAbort)
        if not any(isinstance(m, StreamCommit) for m in messages):
            messages += stream.commits()
    starts = [m for m in messages if isinstance(m, StreamStart)]
    assert len({m.xid for m in starts}) == 2
    (committed,) = [m for m in messages if isinstance(m, StreamCommit)]
    whole = {m.xid for m in messages if isinstance(m, StreamAbort) and m.xid == m.subxid}
    assert whole == {m.xid for m in starts} - {committed.xid}
    assert [int(m.new[0]) for m in messages if isinstance(m, Insert) and m.xid == committed.xid] == list(range(4000))


def test_a_table_altered_by_a_transaction_that_was_rolled_back_is_as_it_was(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY, v text)")
    with live(empty_database, streaming="on") as stream:
        stream.open()
        writer.execute("INSERT INTO t VALUES (-1, 'before')")
        with psycopg.connect(empty_database) as large:
            large.execute("ALTER TABLE t ADD COLUMN w int")
            large.execute("INSERT INTO t SELECT n, repeat('x', 100), 1 FROM generate_series(1, 4000) n")
            messages = stream.take(1, StreamStop)
            large.rollback()
        writer.execute("INSERT INTO t VALUES (-2, 'after')")
        messages += stream.commits()
    inserts = [m for m in messages if isinstance(m, Insert)]
    assert any(i.xid for i in inserts), "nothing had been streamed"
    assert [dict(zip(i.relation.names, i.new, strict=True)) for i in inserts if not i.xid] == [
        {"k": "-1", "v": "before"},
        {"k": "-2", "v": "after"},
    ]


def test_a_transaction_of_many_statements_comes_whole_and_in_their_order(empty_database, writer):
    writer.execute("CREATE TABLE t (k int PRIMARY KEY)")
    with live(empty_database) as stream:
        stream.open()
        with psycopg.connect(empty_database) as slow:
            slow.execute("INSERT INTO t VALUES (1)")
            writer.execute("INSERT INTO t VALUES (1000)")
            for n in range(2, 300):
                slow.execute("INSERT INTO t VALUES (%s)", [n])
        messages = stream.commits(2)
    assert [int(row[0]) for row in rows(messages)] == [1000, *range(1, 300)]
    begins = [m for m in messages if isinstance(m, Begin)]
    commits = [m for m in messages if isinstance(m, Commit)]
    assert [b.lsn for b in begins] == [c.lsn for c in commits]
    assert commits[0].end_lsn <= commits[1].lsn
    assert (
        abs(
            commits[0].at_us / 1e6
            + 946_684_800
            - writer.execute("SELECT extract(epoch FROM now())::float8").fetchone()[0]
        )
        < 60
    )


def test_partitions_come_as_their_table(empty_database, writer):
    writer.execute(
        "CREATE TABLE t (k int PRIMARY KEY) PARTITION BY LIST (k); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)"
    )
    with live(empty_database) as stream:
        stream.open()
        writer.execute("INSERT INTO t VALUES (1)")
        (insert,) = [m for m in stream.commits() if isinstance(m, Insert)]
    assert insert.relation.name == "t"
