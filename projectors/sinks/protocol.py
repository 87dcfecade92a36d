"""What a store must be able to do to be kept equal to the log: five methods.

A sink writes one projection's records into one store. Each projection has *generations* in the store
(separate collections, indexes, tables or labels, named by the caller: short, ``[a-z0-9_]+``); one of
them serves, others are being built or kept for rollback. Which one serves is decided by the product's
own table in PostgreSQL; ``switch`` lets a store that has aliases of its own follow.

Found by entry point group ``outbox.sinks``: the entry's name is the store's name in the settings, its
object a function ``open(projection: str, settings: Mapping[str, Any]) -> ContextManager[Sink]``.
A sink must pass the conformance suite (tests/conformance/test_sinks.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from projectors.marks import Sums
from projectors.record import Change, Stored


class Sink(Protocol):
    """A sink is used by one thread at a time.

    A generation that was dropped, or never prepared, is not an empty one: ``apply`` and ``scan`` raise
    :class:`~outbox.errors.StoreError`.
    """

    def prepare(self, generation: str) -> None:
        """Make the generation's collection, index, table or constraints if they are not there. Idempotent."""

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        """Make the store hold these changes, durably, each under its version guard.

        A change applies if its version is greater than the one stored under its key; a tombstone removes
        the record and stays as a versioned mark. ``changes`` may repeat a key (the greatest version wins)
        and may be empty. When it returns, every change is applied or was overtaken; when it raises, any
        part may be applied, and applying the same batch again is safe.

        Raises :class:`~outbox.errors.StoreUnavailable` (try again) or
        :class:`~outbox.errors.RecordsRefused` (those for good, all others are applied).
        """

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        """Every live record (or those of ``keys`` that are there), read back from the store's own data, in
        any order and bounded memory. The digest is of the record rebuilt from what the store holds."""

    def switch(self, generation: str) -> None:
        """Point the store's own alias, where it has one, at the generation, in one step. Idempotent."""

    def drop(self, generation: str) -> None:
        """Remove the generation and all it holds. Idempotent. The alias may still lead to it, if the projector was
        moved to another store since: it goes, too."""


class Conditional(Protocol):
    """What a sink says whose store compares versions and writes in one step, whoever else writes the same keys.

    No write of such a one can undo a newer one, however late it comes. A sink that reads, decides and writes does not
    say it, and what it writes late is compared with the log (:mod:`projectors.late`).
    """

    conditional: ClassVar[Literal[True]]


def is_conditional(sink: object) -> bool:
    """Whether a sink says so: one that says False, or a function, does not, though it has the name."""
    return getattr(sink, "conditional", False) is True


@runtime_checkable
class Summing(Protocol):
    """What a sink may offer beside: it writes :func:`projectors.marks.mark_of` with each record, in the same write.

    ``verify --quick`` then reads little. It trusts the marks: content changed behind them is found by a full
    verification only.
    """

    def sums(self, generation: str) -> Sums:
        """Count and sum of the marks of the live records, by slice, as the store says (added up by itself if it
        can); records without a mark are counted under :data:`projectors.marks.UNMARKED`."""

    def scan_slices(self, generation: str, slices: Collection[int]) -> Iterator[Stored]:
        """The live records whose slice, as the store says, is one of these; each as :meth:`Sink.scan` gives it."""
