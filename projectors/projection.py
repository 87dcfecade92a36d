"""A projection: the pure code that says what a store should hold.

``fold`` takes a stream's state one event further; ``records`` says what a state looks like in the store.
Neither reads a clock, a random number or anything else from outside: the same log must give the same
records on every machine and in every rebuild. Shrinking, renaming and deleting need no code here: keys a
stream once owned and owns no longer become tombstones by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from outbox.event import Event, Resets
from projectors.record import Record


class Projection(Protocol):
    """``S``, the state, is any value; None is the state before the first event and after a deletion."""

    @property
    def categories(self) -> Sequence[str]:
        """The categories of streams it follows."""

    def fold(self, state: Any, event: Event) -> Any:
        """The state after ``event``. Must not change ``state`` in place: states are cached and shared."""

    def records(self, stream: str, state: Any) -> Iterable[Record]:
        """What the store holds for this stream in this state. Keys must be owned by this stream alone:
        the stream's name, or the name with a suffix behind ``#``."""


@runtime_checkable
class Resetting(Protocol):
    """What a projection may offer beside: it knows events behind which nothing that came before matters.

    A rebuild then reads a stream from its last such event on, and so does ``verify``: what is older is neither decoded
    nor folded, and an older event that would fail does not. A projector that runs takes each event as it comes.
    """

    def resets(self, stream: str, version: int, type: str) -> bool:  # noqa: A002  # the field's name for it
        """Whether ``fold`` gives the same for this event whatever the state before it was."""


def resets_of(projection: Projection) -> Resets | None:
    """How a projection tells such events; None if it does not."""
    return projection.resets if isinstance(projection, Resetting) else None
