"""The projector's process: sessions, one after the other, through outages of its store, broker and database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import psycopg

from outbox.database import first_line
from outbox.errors import BrokerError, BrokerUnavailable, DatabaseError, MemberFenced, StoreError, WaitTimeout
from outbox.garbage import collect_ended
from outbox.log.identity import check_identity
from outbox.logs import logger
from outbox.rests import Rests
from projectors import ledger
from projectors.late import Doubts
from projectors.pipeline import Plan
from projectors.resilience import Pace
from projectors.session import Session, Stations, opened

log = logger("outbox.projector")

HEARTBEAT_S: Final = 5.0
LOOK_S: Final = 1.0
"""How often a projector looks whether another generation serves, and whether a retry was asked for."""

POLLS_FAILED_MAX: Final = 10
"""Polls in a row that may fail before the consumer is opened anew."""


class Runner:
    """Runs one projector until told to stop."""

    def __init__(self, plan: Plan, stations: Stations, bootstrap: Callable[[threading.Event], str]) -> None:
        self._plan = plan
        self._stations = stations
        self._bootstrap = bootstrap
        self._pace = Pace(stations.resilience)
        self._doubts: Doubts = {}

    def run(self, stop: threading.Event) -> None:
        """Serve the serving generation, building the first one if there is none.

        An outage (of the store, the broker, the database) ends the session, never the process: the projector
        rests, then opens everything anew and goes on from its checkpoint. Wrong settings and errors of our
        own code do end it, and so does a process that has taken its name
        (:class:`~outbox.errors.MemberFenced`): joining again would put that one out in its turn.
        """
        rests = Rests(self._stations.rest_s)
        while not stop.is_set():
            rests.begin()
            try:
                self._session(stop)
            except MemberFenced:
                raise
            except (StoreError, BrokerError, DatabaseError, WaitTimeout, psycopg.Error) as error:
                rest_s = rests.failed()
                log.warning("will try again", projector=self._plan.name, error=first_line(error), in_s=rest_s)
                self._say(first_line(error))
                stop.wait(rest_s)
            collect_ended()

    def _session(self, stop: threading.Event) -> None:
        with ExitStack() as stack:  # before a first build, which would load over what a lost log has left in the store
            check_identity(opened(stack, self._stations.dsn))
        generation = self._bootstrap(stop)
        if stop.is_set():
            return
        with ExitStack() as stack:
            session = Session(self._plan, self._stations, generation, stop, stack, self._pace, self._doubts)
            log.info("projecting", projector=self._plan.name, generation=generation, store=self._plan.store)
            looked = spoken = -HEARTBEAT_S
            while not stop.is_set():
                self._step(session, stop)
                now = time.monotonic()
                if now - looked > LOOK_S:
                    looked = now
                    session.look()
                    session.redrive()
                    if not session.serves():
                        return
                if now - spoken > HEARTBEAT_S:
                    spoken = now
                    session.healthy()

    def _step(self, session: Session, stop: threading.Event) -> None:
        """One step. While the broker is away the member stays, for a while: rejoining costs a session time-out."""
        for failed in range(1, POLLS_FAILED_MAX + 1):
            try:
                session.step()
                return
            except BrokerUnavailable as error:
                if failed == POLLS_FAILED_MAX:
                    raise
                log.warning("the broker is away", projector=self._plan.name, error=first_line(error))
                session.healthy(first_line(error))
                if stop.wait(self._stations.rest_s):
                    return

    def _say(self, health: str) -> None:
        try:
            with ExitStack() as stack:
                ledger.note_health(opened(stack, self._stations.dsn), self._plan.name, self._plan.store, health)
        except (DatabaseError, psycopg.Error) as error:
            log.warning("cannot write its health", projector=self._plan.name, error=first_line(error))
