"""Capture: keys of every kind name streams, and a row is found again by its key."""

from __future__ import annotations

import random

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
