"""Reading your own writes: wait until stores hold what a transaction wrote.

A token names a transaction. It is published once the relay's cursor sees it; from then on the map of what
is published says how far each projector must come. That is at most a little more than the transaction
itself, and never less.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from outbox.database import Connection
from outbox.errors import WaitTimeout
from outbox.log.statement import Token

_PUBLISHED: Final = """
SELECT p.topic, p.partition, p."offset"
FROM outbox.relay_cursor c LEFT JOIN outbox.published p ON true
WHERE c.name = %(relay)s AND %(xid)s::text::xid8 < pg_snapshot_xmax(c.a)
  AND pg_visible_in_snapshot(%(xid)s::text::xid8, c.a)
"""
_BEHIND: Final = """
SELECT count(*)
FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[]) AS want (topic, partition, last)
WHERE NOT EXISTS (
    SELECT FROM outbox.checkpoint c JOIN outbox.generation g USING (projector, generation)
    WHERE c.projector = %(projector)s AND g.state = 'serving'
      AND c.topic = want.topic AND c.partition = want.partition AND c."offset" > want.last)
"""
SLEEP_MIN_S: Final = 0.001
SLEEP_MAX_S: Final = 0.02


def wait_for(
    connection: Connection,
    token: Token,
    projectors: Mapping[str, Sequence[str]],
    timeout_s: float = 10.0,
    relay: str = "relay",
) -> None:
    """Return once every projector named (with its topics) has applied what the token's transaction wrote.

    Call it after the commit. Raises :class:`~outbox.errors.WaitTimeout`, which names who is behind.
    """
    deadline = time.monotonic() + timeout_s
    published = _published(connection, token, relay, deadline)
    for projector, topics in projectors.items():
        wanted = {tp: last for tp, last in published.items() if tp[0] in topics}
        _reached(connection, projector, wanted, deadline)


def _published(connection: Connection, token: Token, relay: str, deadline: float) -> dict[tuple[str, int], int]:
    sleep_s = SLEEP_MIN_S
    while not (rows := connection.execute(_PUBLISHED, {"relay": relay, "xid": str(token.xid)}).fetchall()):
        sleep_s = _pause(sleep_s, deadline, f"transaction {token} is not published: is a relay running?")
    return {(topic, partition): offset for topic, partition, offset in rows if topic is not None}


def _reached(connection: Connection, projector: str, wanted: Mapping[tuple[str, int], int], deadline: float) -> None:
    sleep_s = SLEEP_MIN_S
    parameters = {
        "projector": projector,
        "topics": [t for t, _ in wanted],
        "partitions": [p for _, p in wanted],
        "offsets": list(wanted.values()),
    }
    while (row := connection.execute(_BEHIND, parameters).fetchone()) and row[0]:
        sleep_s = _pause(
            sleep_s, deadline, f"{projector} is behind on {row[0]} partition(s): is its projector running?"
        )


def _pause(sleep_s: float, deadline: float, reason: str) -> float:
    if time.monotonic() + sleep_s > deadline:
        raise WaitTimeout(f"waited in vain: {reason}")
    time.sleep(sleep_s)
    return min(sleep_s * 1.5, SLEEP_MAX_S)
