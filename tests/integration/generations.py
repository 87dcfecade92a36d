"""What tests of rebuilds share: a log to build from, a build, and what is left of generations after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from outbox.database import connected
from outbox.log.append import append
from projectors import ledger, operations
from tests.alongside import alongside
from tests.integration.reading import Stage, put

WRITE_EVERY_S = 0.002
"""Writers that take all of the machine would only make the tests slow."""


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """120 streams of two events and one record each; nothing runs."""
    for n in range(120):
        stage.append(f"thing-{n}", put(a=n, gone=1), put(gone=None))
    return stage


def rebuilt(stage: Stage, check: bool = True) -> str:
    return operations.rebuild(stage.side, projector="rows", check=check)["generation"]


def states(stage: Stage) -> dict[str, str]:
    return {g.name: g.state for g in ledger.generations(stage.connection, "rows")}


def tables(stage: Stage) -> set[str]:
    found = stage.connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'outbox_rows'").fetchall()
    return {name for (name,) in found}


@contextmanager
def writing(stage: Stage) -> Iterator[None]:
    """Two writers that go on while the block does: changes, new streams, and keys that come and go.

    They leave half of the streams alone, so that what a load loses is not brought by the catch-up.
    """

    def write(seed: int, ended: threading.Event) -> None:
        with connected(stage.side.write.dsn) as connection:
            n = seed
            while not ended.wait(WRITE_EVERY_S):
                n += 1
                append(
                    connection,
                    f"thing-{n % 60}" if n % 2 else f"thing-new{n % 50}",
                    put(a=n, **{f"k{n % 3}": n if n % 2 else None}),
                )

    with alongside(partial(write, 1_000), partial(write, 500_000)):
        yield
