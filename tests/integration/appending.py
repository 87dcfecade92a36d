"""Every kind of connection behind one face, so that one list of claims is held against all of them.

Each kind gives: append and send in an open transaction, the user's own SQL beside them, commit, rollback.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox.event import NewEvent
from outbox.log import append as writing

_names = itertools.count(1)


def event(name: str = "n", **more: Any) -> NewEvent:
    return NewEvent("entity.upserted", {"kind": "k", "name": name}, **more)


class Sync:
    """A connection that ``append`` takes."""

    def __init__(self, connection: Any, sql: Callable[[str], Any], commit: Callable, rollback: Callable) -> None:
        self.connection, self.commit, self.rollback = connection, commit, rollback
        self._sql = sql

    def append(self, stream, events, **more):
        return writing.append(self.connection, stream, events, **more)

    def send(self, *arguments, **more):
        return writing.send(self.connection, *arguments, **more)

    def sql(self, text: str) -> list[tuple]:
        """The user's own statement in the same transaction."""
        return self._sql(text)


class Async:
    """A connection that ``append_async`` takes, driven from a test without asyncio."""

    def __init__(self, loop: asyncio.Runner, connection: Any, sql: Callable[[str], Any]) -> None:
        self._loop, self.connection, self._sql = loop, connection, sql

    def append(self, stream, events, **more):
        return self._loop.run(writing.append_async(self.connection, stream, events, **more))

    def send(self, *arguments, **more):
        return self._loop.run(writing.send_async(self.connection, *arguments, **more))

    def sql(self, text):
        return self._loop.run(self._sql(text))

    def commit(self):
        self._loop.run(self.connection.commit())

    def rollback(self):
        self._loop.run(self.connection.rollback())


def _rows(cursor: Any) -> list[tuple]:
    try:
        rows = cursor.fetchall()
    except psycopg.ProgrammingError as error:  # in pipeline mode only fetching tells whether there are rows
        if error.sqlstate:
            raise
        return []
    return [tuple(r.values()) if isinstance(r, dict) else tuple(r) for r in rows]


def _alchemy_rows(result: Any) -> list[tuple]:
    return [tuple(r) for r in result] if result.returns_rows else []


@contextmanager
def _psycopg(dsn: str, **settings: Any) -> Iterator[Sync]:
    with psycopg.connect(dsn, **settings) as c:
        yield Sync(c, lambda text: _rows(c.execute(text)), c.commit, c.rollback)
        c.rollback()


@contextmanager
def psycopg_raw_cursors(dsn: str) -> Iterator[Sync]:
    """``RawCursor`` reads $1, not %s: the append must not depend on the connection's cursor factory."""
    with _psycopg(dsn, cursor_factory=psycopg.RawCursor) as one:
        yield one


@contextmanager
def psycopg_client_cursors(dsn: str) -> Iterator[Sync]:
    with _psycopg(dsn, cursor_factory=psycopg.ClientCursor) as one:
        yield one


@contextmanager
def psycopg_dict_rows(dsn: str) -> Iterator[Sync]:
    with _psycopg(dsn, row_factory=dict_row) as one:
        yield one


@contextmanager
def psycopg_unprepared(dsn: str) -> Iterator[Sync]:
    with _psycopg(dsn, prepare_threshold=None) as one:
        yield one


@contextmanager
def psycopg_pipeline(dsn: str) -> Iterator[Sync]:
    with _psycopg(dsn) as one, one.connection.pipeline():
        yield one


@contextmanager
def psycopg_plain(dsn: str) -> Iterator[Sync]:
    with _psycopg(dsn) as one:
        yield one


@contextmanager
def psycopg_async(dsn: str, **settings: Any) -> Iterator[Async]:
    with asyncio.Runner() as loop:
        c = loop.run(psycopg.AsyncConnection.connect(dsn, row_factory=dict_row))

        async def sql(text: str) -> list[tuple]:
            cursor = await c.execute(text)
            return [tuple(r.values()) for r in await cursor.fetchall()] if cursor.description else []

        yield Async(loop, c, sql)
        loop.run(c.close())


def _url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def _engine(dsn: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(_url(dsn, "psycopg"))
    yield engine
    engine.dispose()


def _alchemy(c: Any) -> Sync:
    return Sync(c, lambda text: _alchemy_rows(c.execute(sqlalchemy.text(text))), c.commit, c.rollback)


@contextmanager
def sqlalchemy_connection(dsn: str) -> Iterator[Sync]:
    with _engine(dsn) as engine, engine.connect() as c:
        yield _alchemy(c)


@contextmanager
def sqlalchemy_session(dsn: str) -> Iterator[Sync]:
    with _engine(dsn) as engine, Session(engine) as c:
        yield _alchemy(c)


@contextmanager
def sqlalchemy_scoped_session(dsn: str) -> Iterator[Sync]:
    with _engine(dsn) as engine:
        scoped = scoped_session(sessionmaker(engine))
        yield _alchemy(scoped)
        scoped.remove()


@contextmanager
def _async_engine(dsn: str, driver: str, session: bool) -> Iterator[Async]:
    with asyncio.Runner() as loop:
        engine = create_async_engine(_url(dsn, driver))

        async def connect() -> Any:
            return AsyncSession(engine) if session else await engine.connect()

        c = loop.run(connect())

        async def sql(text: str) -> list[tuple]:
            return _alchemy_rows(await c.execute(sqlalchemy.text(text)))

        yield Async(loop, c, sql)
        loop.run(c.close())
        loop.run(engine.dispose())


def sqlalchemy_async_connection_psycopg(dsn: str):
    return _async_engine(dsn, "psycopg", session=False)


def sqlalchemy_async_connection_asyncpg(dsn: str):
    return _async_engine(dsn, "asyncpg", session=False)


def sqlalchemy_async_session_psycopg(dsn: str):
    return _async_engine(dsn, "psycopg", session=True)


def sqlalchemy_async_session_asyncpg(dsn: str):
    return _async_engine(dsn, "asyncpg", session=True)


@contextmanager
def _django(dsn: str, **options: Any) -> Iterator[Sync]:
    import django
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, USE_TZ=True)
        django.setup()
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    alias = f"outbox_{next(_names)}"
    connections.databases[alias] = connections.configure_settings(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts["dbname"],
                "USER": parts["user"],
                "PASSWORD": parts.get("password", ""),
                "HOST": parts["host"],
                "PORT": parts["port"],
                "OPTIONS": options,
            }
        }
    )["default"]
    c = connections[alias]

    def sql(text: str) -> list[tuple]:
        with c.cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall() if cursor.description else []

    c.set_autocommit(False)
    yield Sync(c, sql, c.commit, c.rollback)
    c.rollback()
    c.close()


def django_connection(dsn: str):
    return _django(dsn)


def django_server_side_binding(dsn: str):
    return _django(dsn, server_side_binding=True)


KINDS = [
    psycopg_plain,
    psycopg_dict_rows,
    psycopg_raw_cursors,
    psycopg_client_cursors,
    psycopg_unprepared,
    psycopg_pipeline,
    psycopg_async,
    sqlalchemy_connection,
    sqlalchemy_session,
    sqlalchemy_scoped_session,
    sqlalchemy_async_connection_psycopg,
    sqlalchemy_async_connection_asyncpg,
    sqlalchemy_async_session_psycopg,
    sqlalchemy_async_session_asyncpg,
    django_connection,
    django_server_side_binding,
]
