from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from projectors.sinks.protocol import Sink
from tests.conformance.sinks import Address, Space, Store


@pytest.fixture
def space(store: Store, address: Address, tmp_path: Path) -> Iterator[Space]:
    """A new space on the real store; emptied at the end."""
    space = Space(store, store.settings(address, tmp_path))
    yield space
    space.clear()


@pytest.fixture
def sink(space: Space) -> Iterator[Sink]:
    with space.open() as sink:
        yield sink


@pytest.fixture
def g(space: Space, sink: Sink) -> str:
    """A prepared generation."""
    return space.generation(sink)
