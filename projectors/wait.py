"""Reading your own writes: wait until stores hold what a transaction wrote.

A token names a transaction. It is published once the relay's cursor sees it; from then on the map of what
is published says how far each projector must come. That is at most a little more than the transaction
itself, and never less. Streams that are parked hold nobody up: their dead letters say what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outbox.database import Connection
from outbox.errors import WaitTimeout
from outbox.log.statement import Token

Want = tuple[str, str | None, str, int, int]
"""A projector, its generation (None: the serving one), a topic and partition, the offset that must be applied."""

_PUBLISHED: Final = """
SELECT p.topic, p.partition, p."offset"
FROM (
    SELECT count(*) > 0 AND bool_and(
        %(xid)s::text::xid8 < pg_snapshot_xmax(a) AND pg_visible_in_snapshot(%(xid)s::text::xid8, a)) AS all
    FROM outbox.relay_cursor WHERE %(relay)s::text IS NULL OR name = %(relay)s
) published LEFT JOIN outbox.published p ON true
WHERE published.all
"""
_BEHIND: Final = """
SELECT want.projector, count(*)
FROM unnest(%(projectors)s::text[], %(generations)s::text[], %(topics)s::text[], %(partitions)s::int[],
            %(offsets)s::bigint[]) AS want (projector, generation, topic, partition, last)
WHERE NOT EXISTS (
    SELECT FROM outbox.checkpoint c JOIN outbox.generation g USING (projector, generation)
    WHERE c.projector = want.projector AND c.topic = want.topic AND c.partition = want.partition
      AND CASE WHEN want.generation IS NULL THEN g.state = 'serving' ELSE c.generation = want.generation END
      AND c."offset" > want.last)
GROUP BY want.projector ORDER BY want.projector
"""
SLEEP_MIN_S: Final = 0.001
SLEEP_MAX_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a wait may take, and what is asked in between: what ``check`` raises ends it."""

    deadline: float
    check: Callable[[], object] | None = None

    def pause(self, sleep_s: float, reason: str) -> float:
        """Sleep; returns how long to sleep next. Raises :class:`~outbox.errors.WaitTimeout` at the deadline."""
        if self.check is not None:
            self.check()
        if time.monotonic() + sleep_s > self.deadline:
            raise WaitTimeout(f"waited in vain: {reason}")
        time.sleep(sleep_s)
        return min(sleep_s * 1.5, SLEEP_MAX_S)


def wait_for(
    connection: Connection,
    token: Token,
    projectors: Mapping[str, Sequence[str]],
    timeout_s: float = 10.0,
    relay: str = "relay",
    check: Callable[[], object] | None = None,
) -> None:
    """Return once every projector named (with its topics) has applied what the token's transaction wrote.

    Call it after the commit. ``check`` is called in between: what it raises ends the wait. Raises
    :class:`~outbox.errors.WaitTimeout`, which names who is behind.
    """
    patience = Patience(time.monotonic() + timeout_s, check)
    published = _published(connection, token, relay, patience)
    wants: list[Want] = [
        (name, None, topic, partition, last)
        for name, topics in projectors.items()
        for (topic, partition), last in published.items()
        if topic in topics
    ]
    _reached(connection, wants, patience)


def wait_for_generation(
    connection: Connection, projector: str, generation: str, topics: Sequence[str], timeout_s: float
) -> None:
    """Return once this generation has applied everything that is committed now, through whatever relays there are.

    Raises :class:`~outbox.errors.WaitTimeout`.
    """
    patience = Patience(time.monotonic() + timeout_s)
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    now = Token(int(row[0]) if row else 0)
    published = _published(connection, now, None, patience)
    _reached(
        connection, [(projector, generation, *tp, last) for tp, last in published.items() if tp[0] in topics], patience
    )


def _published(
    connection: Connection, token: Token, relay: str | None, patience: Patience
) -> dict[tuple[str, int], int]:
    sleep_s = SLEEP_MIN_S
    while not (rows := connection.execute(_PUBLISHED, {"relay": relay, "xid": str(token.xid)}).fetchall()):
        sleep_s = patience.pause(
            sleep_s, f"transaction {token} is not published: is a relay running, and is it committed?"
        )
    return {(topic, partition): offset for topic, partition, offset in rows if topic is not None}


def _reached(connection: Connection, wants: Sequence[Want], patience: Patience) -> None:
    sleep_s = SLEEP_MIN_S
    names = ("projectors", "generations", "topics", "partitions", "offsets")
    parameters = {name: [want[n] for want in wants] for n, name in enumerate(names)}
    while wants and (behind := connection.execute(_BEHIND, parameters).fetchall()):
        spoken = ", ".join(f"{projector} on {partitions} partition(s)" for projector, partitions in behind)
        sleep_s = patience.pause(sleep_s, f"behind is {spoken}: is its projector running?")
