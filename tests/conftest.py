"""Fixtures for every test: the addresses of real servers, and databases of a test's own."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import conninfo, sql

from deploy.local.resolve import resolve
from outbox.database import connected
from outbox.log.migrate import migrate

Address = Callable[[str], str]
Databases = Callable[[], str]
Tidy = Callable[[Any], Any]

TEMPROOT = "PYTEST_DEBUG_TEMPROOT"
"""Names pytest's folder for temporary ones (its manual, "How to use temporary directories")."""

RERUN_CHARS = 4_000
"""Of the end of what is said of a failure that did not last."""

QUICK = {"postgres": {"fsync": "off"}}
"""Processes are killed in these tests, machines are not: what the kernel has is safe. Halves the run."""


@pytest.fixture(scope="session")
def address() -> Iterator[Address]:
    """``address("neo4j")`` is where that server answers. It is found or started when first asked for (see
    :mod:`deploy.local.resolve`) and, if it was started for the tests, stopped with the session."""
    with ExitStack() as servers:
        known: dict[str, str] = {}

        def find(name: str) -> str:
            if name not in known:
                known[name] = servers.enter_context(resolve([name], settings=QUICK)).address(name)
            return known[name]

        yield find


@pytest.fixture(scope="session")
def new_database(address: Address) -> Iterator[Databases]:
    """``new_database()`` makes one more migrated database and returns its DSN; all go with the session."""
    server = address("postgres")
    with ExitStack() as made:
        template = made.enter_context(_made(server, None))
        with connected(_dsn(server, template)) as connection:
            migrate(connection)
        yield lambda: _dsn(server, made.enter_context(_made(server, template)))


@pytest.fixture
def database(new_database: Databases) -> str:
    """DSN of a migrated database that no other test has seen."""
    return new_database()


@pytest.fixture(scope="module")
def module_database(new_database: Databases) -> str:
    """DSN of a migrated database that the tests of one module share."""
    return new_database()


@pytest.fixture
def empty_database(address: Address) -> Iterator[str]:
    """DSN of a database in which nothing has been migrated."""
    server = address("postgres")
    with _made(server, None) as name:
        yield _dsn(server, name)


@pytest.fixture
def tidy() -> Iterator[Tidy]:
    """``tidy(client)`` is the client, which is closed with the test. One that is left has threads and connections
    through all the tests behind it."""
    with ExitStack() as open_ones:
        yield lambda client: open_ones.enter_context(closing(client))


@contextmanager
def _made(server: str, template: str | None) -> Iterator[str]:
    name = f"outbox_test_{os.getpid()}_{uuid.uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template or "template0")
    )
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(create)
    try:
        yield name
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _dsn(server: str, database: str) -> str:
    if "://" in server:
        return urlsplit(server)._replace(path=f"/{database}").geturl()
    return conninfo.make_conninfo(server, dbname=database)


def pytest_configure(config: pytest.Config) -> None:
    """Have the folders of tests under one of this run's own. Those of all runs stand in one folder else, which each run
    shuts to everybody but its user as it begins: also to the PostgreSQL of another run, which root has run as another.
    """
    if hasattr(config, "workerinput") or config.option.basetemp or TEMPROOT in os.environ:
        return
    os.environ[TEMPROOT] = folder = tempfile.mkdtemp(prefix="outbox-tests-")
    config.add_cleanup(lambda: os.environ.pop(TEMPROOT, None))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What failed and passed when it was run again is shown too: it happened, and nobody could look into it else."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"failed, and was run again: {report.nodeid}", sep="-")
        terminalreporter.write_line(report.longreprtext[-RERUN_CHARS:])
