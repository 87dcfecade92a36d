"""PostgreSQL's COPY for what is new; COPY into a temporary table and one UPDATE for what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from psycopg import sql

from benchmarks.natives import Native, parts
from projectors.record import Row


class PostgresNative:
    def __init__(self, connection: psycopg.Connection[Any], table: str) -> None:
        self._connection = connection
        self._table = sql.Identifier(table)

    def load(self, records: Sequence[Row], batch: int) -> None:
        for part in parts(records, batch):
            with self._connection.transaction():
                self._copy(self._table, part)

    def update(self, records: Sequence[Row], batch: int) -> None:
        new = sql.Identifier("new")
        for part in parts(records, batch):
            with self._connection.transaction():
                self._connection.execute("CREATE TEMPORARY TABLE new (key text, body json) ON COMMIT DROP")
                self._copy(new, part)
                self._run("UPDATE {} AS t SET body = new.body FROM new WHERE new.key = t.key")

    def count(self) -> int:
        row = self._run("SELECT count(*) FROM {}").fetchone()
        return int(row[0]) if row else 0

    def _copy(self, table: sql.Identifier, records: Sequence[Row]) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(sql.SQL("COPY {} (key, body) FROM STDIN").format(table)) as copy,
        ):
            for record in records:
                copy.write_row((record.key, orjson.dumps(dict(record.columns)).decode()))

    def _run(self, statement: Any) -> psycopg.Cursor[Any]:
        return self._connection.execute(sql.SQL(statement).format(self._table))


@contextmanager
def opened(settings: Mapping[str, Any], name: str) -> Iterator[Native]:
    table = sql.Identifier(name)
    with psycopg.connect(settings["dsn"], autocommit=True) as connection:
        connection.execute(sql.SQL('CREATE TABLE {} (key text COLLATE "C" PRIMARY KEY, body json)').format(table))
        try:
            yield PostgresNative(connection, name)
        finally:
            connection.execute(sql.SQL("DROP TABLE {}").format(table))
