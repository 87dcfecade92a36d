"""What most integration tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

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
