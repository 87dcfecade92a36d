"""Capture: keys of every kind name streams, and a row is found again by its key."""

from __future__ import annotations

import random

import pytest

from tests.capturing import captured


def plain(count: int, first: str = "a", last: str = "z") -> str:
    """Text that PostgreSQL cannot compress."""
    chosen = random.Random(1)
    return "".join(chr(chosen.randint(ord(first), ord(last))) for _ in range(count))


def test_a_long_key_of_characters_of_several_bytes_fits_the_logs_index(database):
    with captured(database) as one:
        table, key = "t" * 60, plain(890, "\u4e00", "\u9f00")
        one.db.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, n int)")
        one.db.execute(f"INSERT INTO {table} VALUES (%s, 1)", [key])
        one.add(table)
        one.drain()
        one.db.execute(f"DELETE FROM {table}")
        one.drain()
        assert [e.type for e in one.events()] == ["row.inserted", "row.deleted"]
        assert len({e.stream for e in one.events()}) == 1


def test_a_row_whose_key_is_kept_out_of_line_is_updated_and_given_another_key(database):
    """PostgreSQL leaves such a key out of the new row, as it does any large value, and sends the old one's."""
    with captured(database) as one:
        one.db.execute("CREATE TABLE t (id text PRIMARY KEY, n int, large text)")
        one.db.execute("ALTER TABLE t ALTER COLUMN large SET STORAGE EXTERNAL")
        one.add("t")
        one.drain()
        key, large = plain(2_400, "!", "~"), "x" * 10_000
        one.db.execute("INSERT INTO t VALUES (%s, 1, %s)", [key, large])
        one.db.execute("UPDATE t SET n = 2")
        one.drain()
        assert [e.data["columns"] for e in one.events()] == [{"id": key, "n": n, "large": large} for n in (1, 2)]
        one.db.execute("UPDATE t SET id = 'short'")
        one.drain()
        assert one.rows("t") == {"t-short": {"id": "short", "n": 2, "large": large}}


@pytest.mark.parametrize("others", [[], ["a"]])
def test_a_row_with_an_empty_key_is_seen_by_another_look_and_by_truncate(database, others):
    with captured(database) as one:
        one.db.execute("CREATE TABLE t (id text PRIMARY KEY)")
        for key in ["", *others]:
            one.db.execute("INSERT INTO t VALUES (%s)", [key])
        one.add("t")
        one.drain()
        one.capture().again("t")
        one.drain()
        assert one.equal("t")
        assert len(one.events()) == 1 + len(others)
        one.db.execute("TRUNCATE t")
        one.drain()
        assert one.rows("t") == {}


def test_a_table_captured_again_with_another_key_leaves_no_row_of_the_old_one(database):
    with captured(database) as one:
        one.db.execute("CREATE TABLE t (id int PRIMARY KEY)")
        one.db.execute("INSERT INTO t VALUES (1)")
        one.add("t")
        one.drain()
        one.capture().drop("t")
        one.db.execute("ALTER TABLE t DROP COLUMN id, ADD COLUMN code text PRIMARY KEY DEFAULT 'a'")
        one.add("t")
        one.drain()
        assert one.rows("t") == {"t-a": {"code": "a"}}
