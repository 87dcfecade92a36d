"""What tests of capture share: a source with tables, a capture of it, and what the log then says of each row."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from outbox.capture.capture import Capture, CaptureSettings
from outbox.codec import default_registry
from outbox.database import connected
from outbox.event import Event
from outbox.log.read import read_all
from tests.alongside import alongside
from tests.relaying import drop_slots, until

QUICK = CaptureSettings(lease_s=1.0, look_s=0.1, sleep_s=0.02, retry_s=0.05)


class Captured:
    """A log, a source (the same database unless given) and a capture of it."""

    def __init__(self, dsn: str, source: str | None = None) -> None:
        self.dsn, self.source = dsn, source
        self.db = psycopg.connect(source or dsn, autocommit=True)

    def capture(self, **told: Any) -> Capture:
        return Capture(self.dsn, default_registry(), told.pop("settings", QUICK), source_dsn=self.source, **told)

    def add(self, *tables: str) -> None:
        self.capture().add(tables)

    def drain(self, **told: Any) -> Capture:
        """Capture all that is committed by now."""
        capture = self.capture(**told)
        capture.run(threading.Event(), drain=True)
        return capture

    def events(self, after: int = 0) -> list[Event]:
        """Of rows; descriptions apart."""
        return [e for e in self.all_events(after) if e.type.startswith("row.")]

    def all_events(self, after: int = 0) -> list[Event]:
        with connected(self.dsn) as connection:
            return list(read_all(connection, default_registry(), after=after))

    def rows(self, category: str) -> dict[str, dict[str, Any]]:
        """The rows as the log has them now, folded here and not by the product; nulls left out."""
        found: dict[str, dict[str, Any]] = {}
        for event in self.events():
            if event.category != category:
                continue
            if event.type == "row.deleted":
                del found[event.stream]  # raises if it was not there
            else:
                assert (event.stream in found) == (event.type == "row.updated"), event
                found[event.stream] = {n: v for n, v in event.data["columns"].items() if v is not None}
        return found

    def table(self, table: str, key: str = "id") -> dict[str, dict[str, Any]]:
        """The same, asked of the table."""
        cursor = self.db.cursor(row_factory=dict_row)
        rows = cursor.execute(f"SELECT * FROM {table}").fetchall()
        return {f"{table}-{row[key]}": {n: v for n, v in row.items() if v is not None} for row in rows}

    def equal(self, table: str, key: str = "id") -> bool:
        return self.rows(table) == self.table(table, key)

    def one(self, query: str, *parameters: Any) -> Any:
        """Of the log's database."""
        with connected(self.dsn) as connection:
            return connection.execute(query, parameters or None).fetchone()

    @contextmanager
    def running(self, **told: Any) -> Iterator[Capture]:
        """A process's worth of capture in a thread; raises what ended it."""
        capture = self.capture(**told)
        with alongside(capture.run, name="capturing"):
            yield capture

    def until(self, condition: Callable[[], Any], within_s: float = 30.0) -> Any:
        return until(condition, within_s)


@contextmanager
def captured(dsn: str, source: str | None = None) -> Iterator[Captured]:
    """Slots are dropped in the end, without which the databases could not be."""
    one = Captured(dsn, source)
    try:
        yield one
    finally:
        one.db.close()
        with connected(source or dsn) as connection:
            drop_slots(connection)


THINGS = "CREATE TABLE things (id int PRIMARY KEY, name text, price numeric(10, 2))"


@pytest.fixture
def things(database):
    """A table of three rows, captured."""
    with captured(database) as one:
        one.db.execute(THINGS)
        one.db.execute("INSERT INTO things VALUES (1, 'one', 1.10), (2, 'two', 2.20), (3, NULL, NULL)")
        one.add("things")
        yield one


def told(events):
    return [(e.stream, e.version, e.type) for e in events]
