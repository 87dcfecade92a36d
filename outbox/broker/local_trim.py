"""Retention of the local broker: whole table partitions are emptied, rows are never deleted."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from outbox.broker.local_link import Connection
from outbox.broker.local_settings import PART_MESSAGES, PARTS

LOCK_WAIT_MS: Final = 200
"""Emptying a part waits this long for its readers. Longer would make new readers queue behind it."""

LAST: Final = "SELECT last_value FROM outbox.broker_message_seq"
IS_OLD: Final = "SELECT EXISTS (SELECT FROM {0}) AND NOT EXISTS (SELECT FROM {0} WHERE seq > {1})"
"""Quick without an index: an empty part has no page, and in a part that is to stay the first rows decide."""


def trim(connection: Connection, keep_messages: int) -> int:
    """Empty the parts whose messages are all older than the newest ``keep_messages``; how many were emptied.

    A part in use by a reader is left for the next time. The part being written to is never emptied.
    """
    row = connection.execute(LAST).fetchone()
    last = row[0] if row else 0
    current = last // PART_MESSAGES
    others = [number % PARTS for number in range(current + 1, current + PARTS)]
    return sum(_emptied(connection, part, last - keep_messages) for part in others)


def _emptied(connection: Connection, part: int, before: int) -> bool:
    table = sql.Identifier("outbox", f"broker_message_{part}")
    if not _is_old(connection, table, before):
        return False
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_WAIT_MS)))
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            # Asked again under the lock: a publisher may have come round to this part meanwhile.
            if not _is_old(connection, table, before):
                return False
            connection.execute(sql.SQL("TRUNCATE {}").format(table))
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _is_old(connection: Connection, table: sql.Identifier, before: int) -> bool:
    row = connection.execute(sql.SQL(IS_OLD).format(table, sql.Literal(before))).fetchone()
    return bool(row and row[0])
