"""Fixtures for every test: the addresses of real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

Address = Callable[[str], str]


@pytest.fixture(scope="session")
def address() -> Iterator[Address]:
    """``address("neo4j")`` is where that server answers: ``OUTBOX_TEST_NEO4J`` if it is set, else a server
    that is started when it is first asked for and stopped with the session."""
    from deploy.local.local import Local

    local: list[Local] = []

    def find(name: str) -> str:
        if given := os.environ.get(f"OUTBOX_TEST_{name.upper()}"):
            return given
        if not local:
            local.append(Local())
        return local[0].start(name)[0].address

    try:
        yield find
    finally:
        for started in local:
            started.close()
