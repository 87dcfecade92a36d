"""Events that an operator has given up for one projector: its fold passes over them, everywhere and for good.

``outbox dead-letters discard`` writes such an event down in ``outbox.skipped``. Projecting, rebuilding and
verifying all fold through :class:`Skipping`, so the store stays a pure function of two things that are kept:
the log and this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from outbox.database import Connection
from outbox.event import Event, Resets
from projectors import ledger
from projectors.folding import Failure
from projectors.ledger import DeadLetter
from projectors.pipeline import Plan
from projectors.projection import Projection, resets_of
from projectors.record import Record

_LOAD: Final = "SELECT stream, version FROM outbox.skipped WHERE projector = %s"
# What no event of the log caused to fail (a message that is no event, a record the store refuses) cannot be skipped.
_SKIP: Final = """
WITH letter AS (
    UPDATE outbox.dead_letter SET retry = true
    WHERE projector = %(projector)s AND stream = %(stream)s AND version > 0 AND type <> ''
    RETURNING projector, stream, version, type, error
), given_up AS (
    INSERT INTO outbox.skipped (projector, stream, version, type, error)
    SELECT DISTINCT ON (version) projector, stream, version, type, error FROM letter
    ON CONFLICT DO NOTHING
)
SELECT DISTINCT version FROM letter ORDER BY version
"""
_FORGET_STRAY: Final = "DELETE FROM outbox.dead_letter WHERE projector = %s AND stream = %s AND version = 0"


@dataclass(slots=True)
class Skipping:
    """A projection without the events that are skipped. Everything else is the projection's own."""

    projection: Projection
    skipped: frozenset[tuple[str, int]] = frozenset()
    _resets: Resets | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._resets = resets_of(self.projection)

    @property
    def categories(self) -> Sequence[str]:
        return self.projection.categories

    def fold(self, state: Any, event: Event) -> Any:
        if (event.stream, event.version) in self.skipped:
            return state
        return self.projection.fold(state, event)

    def records(self, stream: str, state: Any) -> Iterable[Record]:
        return self.projection.records(stream, state)

    def resets(self, stream: str, version: int, type: str) -> bool:  # noqa: A002  # the protocol's name for it
        """As the projection says, but an event that is skipped leaves everything as it is."""
        told = self._resets
        return told is not None and (stream, version) not in self.skipped and told(stream, version, type)

    def load(self, connection: Connection, projector: str) -> None:
        """Take up what is skipped as of now."""
        self.skipped = frozenset(connection.execute(_LOAD, [projector]).fetchall())

    def park(self, connection: Connection, projector: str, generation: str, failure: Failure) -> None:
        """Write the failure down; to be tried once more if its event was given up meanwhile."""
        letter = DeadLetter(projector, generation, failure.stream, failure.version, failure.type, failure.error, 1)
        ledger.park(connection, letter, retry=self._given_up_since(connection, projector, failure))

    def _given_up_since(self, connection: Connection, projector: str, failure: Failure) -> bool:
        """Whether the event that failed was given up after :meth:`load`, which is done again: the stream only needs to
        be tried once more. Nobody else would ask for that, since giving it up has asked already."""
        if not failure.type:
            return False
        known = self.skipped
        self.load(connection, projector)
        return (failure.stream, failure.version) in self.skipped - known


def skipping(connection: Connection, plan: Plan) -> tuple[Plan, Skipping]:
    """The plan with the events left out that are skipped as of now, and what to call ``load`` of later."""
    projection = Skipping(plan.projection)
    projection.load(connection, plan.name)
    return replace(plan, projection=projection), projection


def skip(connection: Connection, projector: str, stream: str) -> Sequence[int]:
    """Give up the event that parks the stream, and have the projector try the rest again.

    Returns the version given up, in the unlikely case of generations that differ there more than one; nothing if
    the stream is not parked by an event. A message that was no event is only forgotten.
    """
    with connection.transaction():
        connection.execute(_FORGET_STRAY, [projector, stream])
        rows = connection.execute(_SKIP, {"projector": projector, "stream": stream})
        return [version for (version,) in rows]
