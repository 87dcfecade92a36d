"""A connection of the local broker that opens itself again after it was lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.abc import PQGen

from outbox.broker.local_settings import LocalSettings
from outbox.database import first_line, unreachable
from outbox.errors import BrokerError, BrokerUnavailable, OutboxError

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")
Prepare = Callable[[Connection], object]

CHANNEL: Final = "outbox_broker"
"""NOTIFY: an empty payload says that messages have come, a group's name that its members have changed."""

CONNECT_TIMEOUT_S: Final = 10.0
GRACE_S: Final = 1.0
LOOK_EVERY_S: Final = 0.1


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """Gives up waiting for a server that is there and does not answer (paused, or stuck in its disk).

    ``statement_timeout`` needs a server that runs, TCP's own time-outs one that is gone.
    """

    limit_s: float = CONNECT_TIMEOUT_S

    def wait(self, gen: PQGen[T], interval: float = LOOK_EVERY_S, timeout: float | None = None) -> T:
        # psycopg before 3.3 has no timeout here, and then nobody gives one.
        return super().wait(self._bounded(gen), interval, *(() if timeout is None else (timeout,)))

    def _bounded(self, gen: PQGen[T]) -> PQGen[T]:
        """Pass on what psycopg's generator waits for; it is resumed at least every ``interval``."""
        until = time.monotonic() + self.limit_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if time.monotonic() > until:
                    raise psycopg.OperationalError(f"no answer within {self.limit_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return cast(T, end.value)


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
            timeout_ms = max(1, round(self._settings.timeout_s * 1000))  # 0 would be no bound, here and below
            connection = BoundedConnection.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=max(1, round(min(CONNECT_TIMEOUT_S, self._settings.timeout_s))),
                tcp_user_timeout=timeout_ms,
            )
            # The server's own limit comes first: its answer leaves the connection usable.
            connection.limit_s = self._settings.timeout_s + GRACE_S
            self._connection = connection
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [str(timeout_ms)])
            if self._prepare is not None:
                self._prepare(connection)
        return self._connection
