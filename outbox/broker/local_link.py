"""A connection of the local broker that opens itself again after it was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from outbox.broker.local_settings import LocalSettings
from outbox.database import first_line, unreachable
from outbox.errors import BrokerError, BrokerUnavailable, OutboxError

Connection = psycopg.Connection[tuple[Any, ...]]
Prepare = Callable[[Connection], object]

CHANNEL: Final = "outbox_broker"
"""NOTIFY: an empty payload says that messages have come, a group's name that its members have changed."""

CONNECT_TIMEOUT_S: Final = 10.0


class Link:
    """One connection, opened at first use and again after a failure. ``prepare`` is run on each new one."""

    def __init__(self, dsn: str, settings: LocalSettings, prepare: Prepare | None = None) -> None:
        self._dsn = dsn
        self._settings = settings
        self._prepare = prepare
        self._connection: Connection | None = None

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """The connection (autocommit). Raises :class:`~outbox.errors.BrokerUnavailable` if it is or gets lost,
        :class:`~outbox.errors.BrokerError` if the tables are missing."""
        try:
            yield self._opened()
        except psycopg.errors.UndefinedTable as error:
            raise BrokerError(f"the local broker lacks a table: run `outbox migrate` ({first_line(error)})") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self.close()
            raise BrokerUnavailable(str(unreachable(self._dsn, error))) from error
        except psycopg.Error as error:
            self.close()
            raise BrokerError(f"the local broker failed: {first_line(error)}") from error
        except OutboxError:
            raise
        except BaseException:
            # Whatever was under way, a protocol half spoken must not meet the next caller.
            self.close()
            raise

    def close(self) -> None:
        """Close the connection if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> Connection:
        if self._connection is None or self._connection.closed:
            timeout_ms = round(self._settings.timeout_s * 1000)
            connection = psycopg.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=round(min(CONNECT_TIMEOUT_S, self._settings.timeout_s)),
                tcp_user_timeout=timeout_ms,
            )
            self._connection = connection
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(timeout_ms)])
            if self._prepare is not None:
                self._prepare(connection)
        return self._connection
