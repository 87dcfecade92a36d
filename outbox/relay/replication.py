"""A replication connection: PostgreSQL's log as it grows, over libpq's COPY_BOTH mode.

Source: PostgreSQL manual, "Streaming Replication Protocol". After ``START_REPLICATION`` both sides send CopyData
frames: the server XLogData (``w``) and keepalives (``k``), the client its standby status (``r``), which says how far
it has put down what it got. The server keeps its log from there on.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import conninfo, pq, sql

from outbox.database import Connection, connect, first_line
from outbox.errors import DatabaseError, SettingsError

ANSWER_S: Final = 30.0
"""How long START_REPLICATION may take to answer: the server first reads its log anew from the slot's restart point,
but it answers before that."""
EPOCH_UNIX_S: Final = 946_684_800
"""2000-01-01, where PostgreSQL's clock begins."""
BY_RELAY: Final = "relay.engine is 'cdc' (and not 'poll')"

_XLOG: Final = ord("w")
_XLOG_HEADER_BYTES: Final = 25
_KEEPALIVE: Final = struct.Struct("!xQqB")
_STATUS: Final = struct.Struct("!cQQQqB")
_MAY: Final = "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user"


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot just made: it gives every transaction whose commit lies at or after ``lsn``; ``snapshot`` sees all others.

    The snapshot is exported: others may ``SET TRANSACTION SNAPSHOT`` to it until this connection does anything else.
    """

    name: str
    lsn: int
    snapshot: str


def lsn_number(text: str) -> int:
    """``16/B374D848`` as a number."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(lsn: int) -> str:
    """A position in the log as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class Replication:
    """One replication connection. Used by one thread; nothing but :meth:`start` and :meth:`wait` waits."""

    def __init__(self, dsn: str, connection: Connection, wanted_by: str = BY_RELAY) -> None:
        """``connection``: an ordinary one to the same database, asked why if this one is refused; ``wanted_by``: who
        needs it, for the message then.

        Raises :class:`~outbox.errors.SettingsError` if the role may not replicate, else
        :class:`~outbox.errors.DatabaseError`.
        """
        try:
            self._connection = connect(conninfo.make_conninfo(dsn, replication="database", client_encoding="UTF8"))
        except DatabaseError as error:
            raise _refused(connection, error, wanted_by) from error
        self._pg = self._connection.pgconn
        self._making: str | None = None
        self.reached = 0
        """Every commit before this has been received."""
        self.confirmed = 0

    def make_slot(self, name: str, *, temporary: bool = False) -> None:
        """Begin to make a slot. It comes to be once every transaction that is open now has ended: see :meth:`made`.

        ``temporary``: it goes with this connection.
        """
        form = "CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput"
        command = sql.SQL(form if temporary else "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput").format(
            sql.Identifier(name)
        )
        self._pg.send_query(command.as_bytes(self._connection))
        self._pg.flush()
        self._making = name

    def made(self) -> NewSlot | None:
        """The new slot, or None while it is being made. Raises what the server refused it with."""
        if self._making is None:
            return None
        self._pg.consume_input()
        if self._pg.is_busy():
            return None
        self._making = None
        result = self._result()
        name, lsn, snapshot = (result.get_value(0, column) or b"" for column in range(3))
        return NewSlot(name.decode(), lsn_number(lsn.decode()), snapshot.decode())

    def start(self, slot: str, lsn: int, options: Mapping[str, str]) -> None:
        """Begin to stream from a slot: every transaction whose commit lies at or after ``lsn``.

        ``options`` are the output plugin's. Raises ``psycopg.Error`` with the server's reason.
        """
        given = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in options.items()
        )
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(slot), sql.SQL(lsn_text(lsn)), given
        )
        self._pg.send_query(command.as_bytes(self._connection))
        self._pg.flush()
        self._answered()
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise self._error(result)
        self.reached = self.confirmed = lsn

    def receive(self) -> bytes | None:
        """The next message of the output plugin, or None if nothing more has come yet. Keepalives are answered."""
        looked, take = False, self._pg.get_copy_data
        while True:
            count, frame = take(1)
            if count > 0:
                if frame[0] == _XLOG:
                    return bytes(frame[_XLOG_HEADER_BYTES:])
                self._keepalive(frame)
            elif count < 0:
                raise self._error(self._pg.get_result())
            elif looked:
                return None
            else:
                self._pg.consume_input()  # what libpq held is used up: look at the socket, once
                looked = True

    def confirm(self, lsn: int) -> None:
        """Tell the server that everything before ``lsn`` is put down for good; it may forget that part of its log.

        To say it again is a sign of life, which the server wants once in ``wal_sender_timeout``.
        """
        self.confirmed = max(lsn, self.confirmed)
        at_us = int((time.time() - EPOCH_UNIX_S) * 1e6)
        self._pg.put_copy_data(_STATUS.pack(b"r", self.confirmed, self.confirmed, self.confirmed, at_us, 0))
        self._pg.flush()

    def wait(self, timeout_s: float) -> None:
        """Wait until something comes, at most ``timeout_s``."""
        select.select([self._pg.socket], [], [], timeout_s)

    def close(self) -> None:
        """End the connection, and the making of a slot if it is going on."""
        if self._making is not None:
            with suppress(psycopg.Error):
                self._pg.get_cancel().cancel()
        self._connection.close()

    def _keepalive(self, frame: memoryview) -> None:
        end, _, wanted = _KEEPALIVE.unpack_from(frame)
        self.reached = max(self.reached, end)
        if wanted:
            self.confirm(self.confirmed)

    def _answered(self) -> None:
        deadline = time.monotonic() + ANSWER_S
        while self._pg.is_busy():
            if time.monotonic() > deadline:
                raise DatabaseError(f"PostgreSQL did not begin to stream within {ANSWER_S:.0f} s")
            self.wait(1.0)
            self._pg.consume_input()

    def _result(self) -> pq.abc.PGresult:
        """The one result of a command that has been answered."""
        result = self._pg.get_result()
        while self._pg.get_result() is not None:
            pass
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise self._error(result)
        return result

    def _error(self, result: pq.abc.PGresult | None) -> Exception:
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            return DatabaseError("PostgreSQL ended the replication stream")
        return psycopg.errors.error_from_result(result)


def _refused(connection: Connection, error: DatabaseError, wanted_by: str) -> Exception:
    """Why a replication connection was refused, as far as the role tells."""
    row = connection.execute(_MAY).fetchone()
    if row is not None and row[0]:
        return error
    return SettingsError(
        f"{wanted_by}, but the database role may not replicate: ALTER ROLE ... REPLICATION ({first_line(error)})"
    )
