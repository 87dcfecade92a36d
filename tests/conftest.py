"""Fixtures for every test: the addresses of real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from deploy.local.resolve import resolve

Address = Callable[[str], str]


@pytest.fixture(scope="session")
def address() -> Iterator[Address]:
    """``address("neo4j")`` is where that server answers. It is found or started when first asked for (see
    :mod:`deploy.local.resolve`) and, if it was started for the tests, stopped with the session."""
    with ExitStack() as servers:
        known: dict[str, str] = {}

        def find(name: str) -> str:
            if name not in known:
                known[name] = servers.enter_context(resolve([name])).address(name)
            return known[name]

        yield find
