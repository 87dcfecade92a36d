"""The relay's cursor: which rows of the outbox are published, whatever order transactions commit in.

Sequences are drawn before commit, so a row with a lower ``seq`` may become visible after one with a higher
``seq``: a cursor ``seq > last`` loses it. This one works as PgQ's ticks do (Skytools, "PgQ generic queue"):
between two snapshots *a* and *b* lie the rows of the transactions that *b* sees and *a* does not. Each such
*window* is published in the order of ``seq``, page by page; ``last`` says how far.

The cdc engine publishes transaction by transaction, in the order of their commits, and adds each one to *a* (= *b*).
So *a* means the same under both engines, and either goes on where the other stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from outbox.broker.protocol import Places
from outbox.database import Connection
from outbox.errors import Fenced


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``pg_snapshot`` (PostgreSQL manual, 9.27.11): below xmin all is over, from xmax on nothing has begun."""

    text: str

    @property
    def xmin(self) -> int:
        return int(self.text.split(":")[0])

    @property
    def xmax(self) -> int:
        return int(self.text.split(":")[1])

    @property
    def in_progress(self) -> list[str]:
        """The transactions between xmin and xmax that were not over, as text for a cast to xid8[]."""
        listed = self.text.split(":")[2]
        return listed.split(",") if listed else []

    @classmethod
    def of(cls, xmax: int, in_progress: Iterable[int]) -> Self:
        """What sees all transactions below ``xmax`` but these."""
        waiting = sorted(in_progress)
        return cls(f"{waiting[0] if waiting else xmax}:{xmax}:{','.join(map(str, waiting))}")

    @classmethod
    def exported(cls, text: str) -> Self:
        """That of a new slot. Its xmin may lie past its xmax, if nothing has committed in between; which means that all
        below xmin is over, but is no valid ``pg_snapshot``."""
        found = cls(text)
        return cls.of(max(found.xmin, found.xmax), map(int, found.in_progress))

    def sees(self, xid: int) -> bool:
        """As ``pg_visible_in_snapshot``."""
        return self.sight()(xid)

    def sight(self) -> Callable[[int], bool]:
        """:meth:`sees`, to be asked of many."""
        xmin, (waiting, xmax) = self.xmin, self._waiting()
        return lambda xid: xid < xmin or (xid < xmax and xid not in waiting)

    def union(self, other: Snapshot) -> Snapshot:
        """What sees all that either one sees."""
        (mine, my_end), (theirs, their_end) = self._waiting(), other._waiting()
        unseen = {xid for xid in mine if xid in theirs or xid >= their_end}
        unseen |= {xid for xid in theirs if xid in mine or xid >= my_end}
        return Snapshot.of(max(my_end, their_end), unseen)

    def including(self, xids: Iterable[int], most: int) -> Snapshot:
        """What sees these as well; but none for which more than ``most`` would have to be listed as in progress."""
        waiting, xmax = self._waiting()
        for xid in sorted(xids):
            if xid >= xmax and xid - xmax + len(waiting) <= most:
                waiting.update(range(xmax, xid))
                xmax = xid + 1
            waiting.discard(xid)
        return Snapshot.of(xmax, waiting)

    def _waiting(self) -> tuple[set[int], int]:
        return {int(xid) for xid in self.in_progress}, self.xmax


IN_PROGRESS_MAX: Final = 1_000
"""How many transactions the cdc engine may list as open. Beyond, a transaction published is not added to ``a``, which
then lags until a mark lets it catch up: ``lsn`` still passes it, and a switch of engines publishes it once more."""

BEGINNING: Final = Snapshot("3:3:")
"""Before every transaction there ever was: 3 is the first normal transaction id."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """All rows visible in ``a`` are published; of the window between ``a`` and ``b`` those up to ``last``.

    For the cdc engine also: of the transactions that ``slot`` gives, all that have committed before ``lsn``; and of
    transaction ``part`` (0: none), which is too large for one page, the rows up to ``last``.
    """

    a: Snapshot
    b: Snapshot
    last: int = 0
    slot: str | None = None
    lsn: int = 0
    part: int = 0

    @property
    def open(self) -> bool:
        """Whether a window is published in part."""
        return self.a != self.b

    @property
    def as_window(self) -> Cursor:
        """The same place, for who knows no ``part``: a window of that transaction alone. Where too many would have to
        be listed as open for it, ``part`` is left as it is."""
        if self.open or not self.part:
            return self
        window = replace(self, b=self.a.including([self.part], IN_PROGRESS_MAX), part=0)
        return window if window.open else self


_LOAD: Final = """
INSERT INTO outbox.relay_cursor (name, epoch, a, b, last)
VALUES (%(name)s, %(epoch)s, %(start)s::pg_snapshot, %(start)s::pg_snapshot, 0)
ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch WHERE relay_cursor.epoch <= excluded.epoch
RETURNING a::text, b::text, last, slot, coalesce(lsn - '0/0'::pg_lsn, 0)::bigint, coalesce(part::text::bigint, 0)
"""

# One statement: the lease is ours and goes on, the cursor moves, the map of what is published follows.
_ADVANCE: Final = """
WITH leader AS (
    UPDATE outbox.lease SET expires_at = clock_timestamp() + make_interval(secs => %(ttl_s)s)
    WHERE name = %(name)s AND epoch = %(epoch)s RETURNING epoch
), moved AS (
    UPDATE outbox.relay_cursor c
    SET a = %(a)s::pg_snapshot, b = %(b)s::pg_snapshot, last = %(last)s, at = clock_timestamp(),
        slot = %(slot)s, lsn = '0/0'::pg_lsn + %(lsn)s::numeric, part = %(part)s::text::xid8,
        step = c.step + %(steps)s
    FROM leader WHERE c.name = %(name)s AND c.epoch = leader.epoch RETURNING c.name
), mapped AS (
    INSERT INTO outbox.published AS p (topic, partition, "offset", horizon)
    SELECT t, n, o, %(horizon)s::text::xid8
    FROM moved, unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[]) AS r (t, n, o)
    ON CONFLICT (topic, partition) DO UPDATE
    SET "offset" = greatest(p."offset", excluded."offset"), horizon = excluded.horizon, at = clock_timestamp()
)
SELECT CASE WHEN NOT %(lasting)s THEN set_config('synchronous_commit', 'off', true) END FROM moved
"""


def load(connection: Connection, name: str, epoch: int) -> Cursor:
    """The cursor, now owned by ``epoch``. Raises :class:`~outbox.errors.Fenced` if a newer epoch owns it."""
    row = connection.execute(_LOAD, {"name": name, "epoch": epoch, "start": BEGINNING.text}).fetchone()
    if row is None:
        raise Fenced(f"relay {name!r}: epoch {epoch} is over")
    return Cursor(Snapshot(row[0]), Snapshot(row[1]), *row[2:])


def steps(connection: Connection, name: str) -> int:
    """How many pages this relay has published, by what is written down."""
    row = connection.execute("SELECT step FROM outbox.relay_cursor WHERE name = %s", [name]).fetchone()
    return row[0] if row else 0


def advance(
    connection: Connection,
    name: str,
    epoch: int,
    cursor: Cursor,
    published: Places,
    ttl_s: float,
    *,
    lasting: bool = True,
) -> None:
    """Write the cursor and what it has published, and renew the lease; all or nothing, only for the leader.

    ``lasting``: wait until it is on disk. Else a crash of the server within the next moments may undo it, and every
    later one that was not waited for either: never an earlier one, nor anything that was (PostgreSQL manual, 28.4
    "Asynchronous Commit"). Raises :class:`~outbox.errors.Fenced`.
    """
    row = connection.execute(
        _ADVANCE,
        {
            "name": name,
            "epoch": epoch,
            "ttl_s": ttl_s,
            "a": cursor.a.text,
            "b": cursor.b.text,
            "last": cursor.last,
            "slot": cursor.slot,
            "lsn": cursor.lsn,
            "part": str(cursor.part) if cursor.part else None,
            "steps": 1 if published else 0,
            "lasting": lasting,
            "horizon": str(cursor.a.xmin),
            "topics": [t for t, _ in published],
            "partitions": [p for _, p in published],
            "offsets": list(published.values()),
        },
    ).fetchone()
    if row is None:
        raise Fenced(f"relay {name!r}: another process has taken over from epoch {epoch}")
