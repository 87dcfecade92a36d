"""Marks: a few bytes that a store keeps with each record, so that it can say by itself what it holds.

A record's *slice* is one of :data:`SLICES`, by its key. Its *mark* is 32 bits of its stream, key and content,
written by the sink together with the record. The log's records and the store's are then compared by count and
sum of each slice's marks, and only the slices that differ are read.

The version is no part of it: which version a record was last written at depends on how events came in batches, and
the log alone cannot tell it. A record is right if its content is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from projectors.record import Change, digest

SLICES: Final = 1_024
"""Of a million records each holds a thousand: reading one costs as much as one page of a scan."""
SLICE_BITS: Final = 10
SLOT_BITS: Final = 64
MARK_BITS: Final = 32
"""Sums are exact even where a store adds doubles (2^53): up to two million records a slice. One difference is missed
by its sum with a chance of 2^-32."""
UNMARKED: Final = -1
"""In place of a slice: records without a mark, written before there were marks or by somebody else."""


class Mark(NamedTuple):
    """What a sink writes beside a live record."""

    slice: int
    mark: int


@dataclass(frozen=True, slots=True)
class Sum:
    """How many live records there are in a slice, and the sum of their marks."""

    count: int
    total: int


Sums = Mapping[int, Sum]
"""By slice; slices without records are left out. Under :data:`UNMARKED` are those without a mark, of total 0."""


def slot_of(key: str) -> int:
    """64 bits that spread keys evenly; a slice is a range of them. A key that is no UTF-8 raises ``ValueError``."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=SLOT_BITS // 8).digest(), "big")


def slice_of(key: str) -> int:
    """The slice of the records of this key."""
    return slot_of(key) >> (SLOT_BITS - SLICE_BITS)


def mark64(stream: str, key: str, form: bytes) -> int:
    """64 bits of a record's stream, key and digest: a difference is missed with a chance below 10^-12."""
    whole = b"%b\0%b\0%b" % (stream.encode(), key.encode(), form)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest())


def shortened(mark: int) -> int:
    """The part of :func:`mark64` that stores keep."""
    return mark & ((1 << MARK_BITS) - 1)


def mark_of(change: Change) -> Mark | None:
    """What to write beside the change's record; None for a tombstone.

    Raises ``TypeError`` or ``ValueError`` if the record has no canonical form: no store could give it back.
    """
    if change.record is None:
        return None
    return Mark(slice_of(change.key), shortened(mark64(change.stream, change.key, digest(change.record, change.form))))


def summed(marks: Iterable[tuple[int | None, int | None]]) -> dict[int, Sum]:
    """Pairs of slice and mark, added up here, for stores that cannot do it; with a None they count as unmarked."""
    counts: dict[int, int] = {}
    totals: dict[int, int] = {}
    for slice_, mark in marks:
        known = UNMARKED if slice_ is None or mark is None else slice_
        counts[known] = counts.get(known, 0) + 1
        totals[known] = totals.get(known, 0) + (mark or 0 if known != UNMARKED else 0)
    return {s: Sum(count, totals[s]) for s, count in counts.items()}
