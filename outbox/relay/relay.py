"""The relay: carries the outbox to the broker. One leader, one cursor, any number of stand-bys."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import psycopg

from outbox.broker.protocol import Broker
from outbox.database import Connection, check_migrated, first_line, leading
from outbox.errors import BrokerUnavailable, DatabaseError, Fenced
from outbox.garbage import collect_ended
from outbox.logs import logger
from outbox.metrics import RELAY_ERRORS, RELAY_LEADER
from outbox.relay.ahead import ReadAhead
from outbox.relay.engines import open_engine
from outbox.relay.exactly_once import ExactlyOnceLeader, recover
from outbox.relay.horizon import Horizon
from outbox.relay.leader import Leader
from outbox.relay.lease import Keeper, Lease, new_holder, wait_for
from outbox.relay.settings import RelaySettings
from outbox.rests import Rests

__all__ = ["Relay", "RelaySettings"]

log = logger("outbox.relay")


class Relay:
    """Runs until told to stop, through broker and database outages. Three connections while it leads, one else."""

    def __init__(self, dsn: str, broker: Callable[[], Broker], settings: RelaySettings | None = None) -> None:
        self._dsn = dsn
        self._broker = broker
        self._settings = settings or RelaySettings()
        self._holder = new_holder()

    def run(self, stop: threading.Event, *, drain: bool = False) -> None:
        """Lead whenever the lease is free.

        Failures of the broker or the database are logged and tried again, ever less often; nothing else is caught, so
        a log that went back (:class:`~outbox.errors.LogWentBack`) ends it. ``drain``: wait for the lease, publish,
        return once nothing is left, and raise the first failure instead.
        """
        rests = Rests(self._settings.retry_s)
        while not stop.is_set():
            rests.begin()
            try:
                if self._attempt(stop, drain=drain):
                    return
            except Fenced as error:
                log.info("no longer the leader", reason=first_line(error))
            except (BrokerUnavailable, DatabaseError, psycopg.Error) as error:
                if drain:
                    raise
                RELAY_ERRORS.inc()
                rest_s = rests.failed()
                log.warning("will try again", error=first_line(error), in_s=rest_s)
                stop.wait(rest_s)
            collect_ended()

    def _attempt(self, stop: threading.Event, *, drain: bool) -> bool:
        """Wait for the lease and lead; True if drained."""
        with leading(self._dsn) as connection:
            check_migrated(connection)
            lease = wait_for(connection, self._settings.name, self._holder, self._settings.lease_s, stop)
            return lease is not None and self._lead(connection, lease, stop, drain=drain)

    def _lead(self, connection: Connection, lease: Lease, stop: threading.Event, *, drain: bool) -> bool:
        log.info("leading", epoch=lease.epoch)
        with ExitStack() as stack:
            stack.callback(lease.release, connection)
            keeper = stack.enter_context(Keeper(self._dsn, lease))
            broker = self._broker()
            stack.callback(broker.close)
            lead = self._ready(stack, connection, broker, lease, keeper)
            engine = stack.enter_context(open_engine(self._dsn, lease, self._settings, drain=drain))
            leader = lead(engine)
            RELAY_LEADER.set(1)
            stack.callback(RELAY_LEADER.set, 0)
            return self._turn(leader, engine, keeper, stop, drain=drain)

    def _ready(
        self, stack: ExitStack, connection: Connection, broker: Broker, lease: Lease, keeper: Keeper
    ) -> Callable[[ReadAhead], Leader]:
        """What is to be done before the cursor is read; the leader, once it has an engine."""
        settings = self._settings
        horizon = Horizon(connection, broker, settings.prefix)
        if settings.delivery == "at_least_once":
            horizon.check_log()
            producer = broker.producer()
            stack.callback(producer.close)
            return lambda engine: Leader(connection, engine, producer, lease, settings, horizon, keeper.check)
        transactions = broker.transactions(settings.transactions)
        stack.callback(transactions.close)
        identity = recover(connection, transactions, lease, settings, horizon.check_log)
        return lambda engine: ExactlyOnceLeader(
            connection, engine, transactions, lease, settings, identity, horizon, keeper.check
        )

    def _turn(self, leader: Leader, engine: ReadAhead, keeper: Keeper, stop: threading.Event, *, drain: bool) -> bool:
        sleep_s = self._settings.sleep_min_s
        while not stop.is_set():
            keeper.check()
            if leader.step():
                sleep_s = self._settings.sleep_min_s
            elif drain:
                return True
            else:
                engine.wait(stop, sleep_s)
                sleep_s = min(sleep_s * 2, self._settings.sleep_max_s)
        return False
