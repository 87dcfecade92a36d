"""What most integration tests begin with."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.integration.reading import Stage, settings_of, staged
from tests.relaying import Recorder


@pytest.fixture
def producer(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A service's own connection to the test's database; each statement commits."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def recorder() -> Recorder:
    """A broker that keeps what it is given."""
    return Recorder()


@pytest.fixture
def broker() -> str:
    """The broker of a read side, unless a test names others."""
    return "local"


@pytest.fixture
def stage(broker: str, database: str, address: Callable[[str], str]) -> Iterator[Stage]:
    """A read side with an empty log; nothing runs yet."""
    with staged(settings_of(broker, database, address)) as stage:
        yield stage


@pytest.fixture
def projection() -> str:
    """A name that nobody else has used in a server that tests share."""
    return f"t{uuid.uuid4().hex[:12]}"
