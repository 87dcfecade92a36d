"""All rows of a table, as of one snapshot, compared with what the log has: the differences become events.

The first time the log has nothing and every row is an insert. Later (a snapshot that was interrupted, a table altered,
a slot lost) most rows are equal and cost a look. So a snapshot can be begun again at any time, and nothing is said
twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from outbox.capture import names, registered
from outbox.capture.changes import describe, gone
from outbox.capture.form import Columns, Form, form, same
from outbox.capture.registered import Captured
from outbox.capture.table import Table, locked, look, rewritten
from outbox.capture.values import Types
from outbox.capture.writer import CHUNK_BYTES, Pending, Writer
from outbox.database import Connection
from outbox.errors import DatabaseError
from outbox.relay.pgoutput import Row

CHUNK_ROWS: Final = 5_000

Tell = Callable[[int, int, str], None]
"""Told the rows read, an estimate of how many there are (0: none), and the table."""

_KNOWN: Final = "SELECT EXISTS (SELECT FROM outbox.event WHERE stream > %(c)s AND stream < %(c)s || '.')"
_ESTIMATE: Final = """
SELECT coalesce(sum(c.reltuples) FILTER (WHERE c.reltuples > 0), 0)::bigint FROM pg_class c
WHERE c.oid = %(t)s::oid OR c.oid IN (SELECT relid FROM pg_partition_tree(%(t)s::oid::regclass))
"""
_SEEN: Final = 'CREATE TEMPORARY TABLE outbox_seen (stream text COLLATE "C" PRIMARY KEY)'
_SEE: Final = "INSERT INTO outbox_seen SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
_UNSEEN: Final = "SELECT u FROM unnest(%s::text[]) u WHERE NOT EXISTS (SELECT FROM outbox_seen s WHERE s.stream = u)"
_FORGET: Final = "DROP TABLE IF EXISTS outbox_seen"


@dataclass(slots=True)
class Snapshot:
    """One look at some tables. ``source`` sees the snapshot, ``lsn`` is where the stream goes on from it."""

    source: Connection
    writer: Writer
    origin: str
    lsn: int
    tell: Tell

    def settle(self, captured: Captured) -> None:
        """Bring the log to what the table held at the snapshot.

        1. Lock the table against being altered or dropped. 2. Describe it, if its columns are not those described
        last. 3. Append what differs, chunk by chunk, each committed. 4. Append what is gone and, in the same
        transaction, write down that the table streams from ``lsn`` on. A crash before the last commit leaves a table
        that is looked at again, in another snapshot.
        """
        table = self._locked(captured)
        known = self._formed(captured, table)
        if self.writer.waiting:  # nothing is left open while the source looks for the first rows
            self.writer.commit(self.lsn)
        before = self._is_known(captured.category)
        self.writer.connection.execute(_FORGET)
        if before:
            self.writer.connection.execute(_SEEN)
        for rows in self._chunks(known, table):
            self._chunk(known, rows, before=before)
        if before:
            gone(self.writer, known, self._place(), self.origin, self._unseen)
        self.writer.begin()
        registered.settled(self.writer.connection, self.writer.standing.name, captured.category, table.print)
        self.writer.commit(self.lsn)
        self.writer.connection.execute(_FORGET)

    def _locked(self, captured: Captured) -> Table:
        table = look(self.source, captured.relation)
        if table is None:
            raise DatabaseError(f"table {captured.name} has been dropped: outbox capture --drop {captured.category}")
        if table.key != captured.key:
            raise registered.key_changed(captured.name, captured.key, table.key)
        if not locked(self.source, table):
            raise DatabaseError(f"table {captured.name} was dropped or renamed while its snapshot was taken")
        if rewritten(self.source, captured.relation):
            raise DatabaseError(f"table {captured.name} was rewritten or truncated while its snapshot was taken")
        return table

    def _formed(self, captured: Captured, table: Table) -> Form:
        types = Types(self.source)
        if table.columns != captured.columns:
            captured = describe(self.writer, types, self.origin, captured, table.columns, list(table.oids))
        converters = types.converters(table.oids)
        return form(captured.category, captured.name, captured.shape, table.names, converters, captured.key)

    def _chunks(self, known: Form, table: Table) -> Iterator[list[Row]]:
        """The rows as text, out of COPY, which writes values as the stream does."""
        columns = sql.SQL(", ").join(map(sql.Identifier, known.columns))
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(columns, table.only)
        estimate = self.source.execute(_ESTIMATE, {"t": table.relation}).fetchone()
        done, total = 0, estimate[0] if estimate else 0
        chunk: list[Row] = []
        size = 0
        with self.source.cursor().copy(query) as copy:
            for row in copy.rows():
                chunk.append(row)
                size += _size(row)
                if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                    yield chunk
                    done, chunk, size = done + len(chunk), [], 0
                    self.tell(done, max(total, done), known.table)
        yield chunk
        self.tell(done + len(chunk), done + len(chunk), known.table)

    def _chunk(self, known: Form, rows: list[Row], *, before: bool) -> None:
        self.writer.alive()
        streams = [known.stream(row) for row in rows]
        states: dict[str, Columns] = {}
        if before:
            states = self.writer.last(streams)
            self.writer.begin()
            self.writer.connection.execute(_SEE, [streams])
        for stream, row in zip(streams, rows, strict=True):
            self._row(known, stream, row, states.get(stream))
        self.writer.counts.rows += len(rows)
        self.writer.commit(self.lsn)

    def _row(self, known: Form, stream: str, row: Row, state: Columns | None) -> None:
        columns = known.values(row)
        if state is not None and same(state, columns):
            return
        data = {"table": known.table, "shape": known.shape, "columns": columns, **self._place()}
        type_ = "row.inserted" if state is None else "row.updated"
        id_ = names.member_id(self.origin, self.lsn, 0, stream)
        self.writer.add(Pending(stream, type_, data, id_), _size(row))

    def _place(self) -> dict[str, int]:
        return {"lsn": self.lsn, "ordinal": 0, "at_us": time.time_ns() // 1_000}

    def _is_known(self, category: str) -> bool:
        row = self.writer.connection.execute(_KNOWN, {"c": category}).fetchone()
        return row is not None and bool(row[0])

    def _unseen(self, streams: list[str]) -> set[str]:
        return {stream for (stream,) in self.writer.connection.execute(_UNSEEN, [streams])}


def _size(row: Row) -> int:
    return sum([len(value) for value in row if isinstance(value, str)])
