"""Each store's own way to take many records at once: what the projectors' rates stand beside.

A native writes what is in the records, without our version, stream and mark. It is given finished records and has its
client open and its collection made before the clock starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from projectors.record import Record

T = TypeVar("T")

BATCHES: Final = (500, 2_000, 5_000)
"""Batch sizes that are tried; the best one counts."""


class Native(Protocol):
    """One empty collection of the store."""

    def load(self, records: Sequence[Any], batch: int) -> None:
        """Write new records, durably, ``batch`` at a time."""

    def update(self, records: Sequence[Any], batch: int) -> None:
        """Write other content under keys that are there."""

    def count(self) -> int:
        """How many records there are, as the store says."""


def opened(store: str, settings: Mapping[str, Any], name: str) -> AbstractContextManager[Native]:
    """A new collection of that name in the store; gone at the end."""
    found: AbstractContextManager[Native] = import_module(f"{__name__}.{store}").opened(settings, name)
    return found


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


__all__ = ["BATCHES", "Native", "Record", "opened", "parts"]
