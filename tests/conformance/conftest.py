from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outbox.broker import Broker
from projectors.sinks.protocol import Sink
from tests.conformance.brokers import KINDS, Kind, installed
from tests.conformance.sinks import Address, Space, Store
from tests.conftest import Tidy


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


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of broker in turn."""
    return request.param


@pytest.fixture(scope="module")
def where(kind: Kind, address: Callable[[str], str]) -> Iterator[str]:
    """Where it answers."""
    with installed(kind, address(kind.server)) as where:
        yield where


@pytest.fixture
def broker(kind: Kind, where: str, tidy: Tidy) -> Broker:
    return tidy(kind.open(where, 30.0))


@pytest.fixture
def topic() -> str:
    return f"t{uuid.uuid4().hex[:12]}.entity"
