"""What the conformance suite needs to know of a store, and how it opens one on a space of its own.

To add a store, write ``stores/<name>.py`` with ``STORES = (Store(...),)``; nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from projectors.record import Change, Record, Stored, digest
from projectors.sinks.protocol import Sink
from tests.conformance import stores
from tests.conformance.samples import sample

Settings = Mapping[str, Any]
Address = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Store:
    """A real store that a sink must keep."""

    name: str
    """Shown in the tests' names."""
    entry: str
    """Its name in the entry point groups ``outbox.sinks`` and ``outbox.readers``."""
    kinds: tuple[type, ...]
    """The kinds of records its sink takes."""
    settings: Callable[[Address, Path], Settings]
    """Settings for a space of its own, from ``address(server) -> str`` and an empty folder. Stores on a
    server are kept apart by the projection's name, which is new for every test."""
    unreachable: Callable[[Path], Settings] | None = None
    """Settings that lead to no store; None if the store is a folder or the process itself."""
    over_batch: int = 2_500
    """More records than the store (or its sink) takes in one request."""
    silent: Callable[[int], Settings] | None = None
    """Settings that lead to a local port that takes connections and never answers, with the shortest wait the
    sink can be set to."""
    concurrent: bool = False
    """Whether the store itself compares and sets, so that two writers at once end right."""
    durable: bool = True
    """Whether what was applied outlives the process."""
    sums: bool = True
    """Whether its sink offers sums."""

    @property
    def answers(self) -> bool:
        """Whether it has a reader."""
        return self.entry in entry_points(group="outbox.readers").names


def discover() -> tuple[Store, ...]:
    found = []
    for module in sorted(info.name for info in pkgutil.iter_modules(stores.__path__)):
        found += importlib.import_module(f"{stores.__name__}.{module}").STORES
    return tuple(found)


def opener(group: str, entry: str) -> Callable[[str, Settings], AbstractContextManager[Any]]:
    """The function behind an entry point, as the product itself finds it."""
    return entry_points(group=group)[entry].load()


@dataclass(slots=True)
class Space:
    """One test's own projection in one store."""

    store: Store
    settings: Settings
    projection: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    generations: list[str] = field(default_factory=list)

    def open(self) -> AbstractContextManager[Sink]:
        return opener("outbox.sinks", self.store.entry)(self.projection, self.settings)

    def open_reader(self) -> AbstractContextManager[Any]:
        return opener("outbox.readers", self.store.entry)(self.projection, self.settings)

    def generation(self, sink: Sink) -> str:
        """A new, empty generation, prepared."""
        name = f"g{len(self.generations) + 1}"
        self.generations.append(name)
        sink.prepare(name)
        return name

    def clear(self) -> None:
        with self.open() as sink:
            for generation in self.generations:
                sink.drop(generation)


def held(sink: Sink, generation: str, keys: Sequence[str] | None = None) -> dict[str, Stored]:
    """What the store holds, by key. No key may come twice."""
    found = list(sink.scan(generation, keys))
    by_key = {stored.key: stored for stored in found}
    assert len(by_key) == len(found), "a key was given twice"
    return by_key


def expected(changes: Iterable[Change]) -> dict[str, Stored]:
    """What any store must hold after these changes: for each key the change of the greatest version."""
    last: dict[str, Change] = {}
    for change in changes:
        if change.key not in last or change.version > last[change.key].version:
            last[change.key] = change
    return {c.key: stored(c) for c in last.values() if c.record is not None}


def stored(change: Change) -> Stored:
    assert change.record is not None
    return Stored(change.key, change.stream, change.version, digest(change.record))


def put(record: Record, version: int) -> Change:
    return Change(record.key, stream_of(record.key), version, record)


def tombstone(key: str, version: int) -> Change:
    return Change(key, stream_of(key), version, None)


def change_of(kind: type, key: str, version: int) -> Change:
    """The one change that ``key`` has at ``version``: every third is a tombstone."""
    return tombstone(key, version) if version % 3 == 0 else put(sample(kind, key, version), version)


def history(kind: type, seed: int, length: int, keys: int = 8) -> list[Change]:
    """Changes of a few keys, in a mixed order, some more than once."""
    source = random.Random(seed)
    return [change_of(kind, f"k{source.randrange(keys)}", source.randrange(1, 20)) for _ in range(length)]


def stream_of(key: str) -> str:
    return f"thing-{key}"


STORES = discover()
EVERY_KIND = [(store, kind) for store in STORES for kind in store.kinds]


def with_kind(kind: type) -> pytest.MarkDecorator:
    """Run the test on every store that takes this kind of record."""
    return pytest.mark.parametrize("store", [store for store in STORES if kind in store.kinds], ids=label)


def answering(kind: type) -> pytest.MarkDecorator:
    """The same, of those that answer questions."""
    return pytest.mark.parametrize("store", [s for s in STORES if kind in s.kinds and s.answers], ids=label)


def where(condition: Callable[[Store], Any]) -> pytest.MarkDecorator:
    """Run the test on every store of which ``condition`` holds, with every kind that it takes."""
    return pytest.mark.parametrize(
        ("store", "kind"), [(store, kind) for store, kind in EVERY_KIND if condition(store)], ids=label
    )


def label(value: Any) -> str:
    """How a store or a kind is shown in a test's name."""
    return value.__name__ if isinstance(value, type) else value.name
