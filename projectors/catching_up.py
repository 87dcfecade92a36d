"""A new generation comes up with what is published, as any projector does, and takes over from the one that serves."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, Self

import psycopg

from outbox.database import Connection
from outbox.errors import WaitTimeout
from projectors import ledger
from projectors.building import LOOK_S, Progress, check_stop
from projectors.loading import LOAD_BATCH
from projectors.pipeline import Plan
from projectors.session import Session, Stations

CATCH_UP_S: Final = 600.0
CLOSE_S: Final = 1.0
"""A generation that applies what was published in less than this is close enough to serve: with writers going on
it never stands still at nothing left."""

HOLD_S: Final = 5.0
"""How long the serving generation is held, at a time, for the new one to come up with it."""


class _Short(Exception):
    """The new generation did not come up with the one that serves while that one was held."""


class CatchingUp:
    """Follows the broker on a thread of its own until the block ends."""

    def __init__(self, plan: Plan, stations: Stations, generation: str, stop: threading.Event) -> None:
        # In larger batches than readers of a serving store would wait for: of a stream that is written to again and
        # again only the last state is sent, so that a store slower than the writers is still caught up.
        usual = stations.resilience
        # And the broker is waited for shortly: nobody else is, and the build ends when this thread does.
        self._stations = replace(
            stations, resilience=replace(usual, batch=max(usual.batch, LOAD_BATCH)), poll_s=min(stations.poll_s, LOOK_S)
        )
        self._plan = plan
        self._generation = generation
        self._stop = stop
        self._ended = threading.Event()
        self._close = threading.Event()
        self._failure: BaseException | None = None
        self._done = 0
        self._behind = 0
        self._thread = threading.Thread(target=self._run, name=f"{plan.name}.{generation}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()

    def wait(self, tell: Progress) -> None:
        """Return once it is close behind, or the build was told to stop."""
        deadline = time.monotonic() + CATCH_UP_S
        while not self._close.wait(LOOK_S) and not self._stop.is_set():
            self.check()
            tell("catch up", self._done, self._behind)
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"{self._plan.name}: {self._generation} is {self._behind} messages behind after {CATCH_UP_S:.0f} s"
                )

    def hand_over(self, connection: Connection) -> None:
        """Let the generation serve, once it has all that the one before it was seen to have: who has waited for a write
        must find it after the switch too. That one's checkpoints stand still meanwhile, for :data:`HOLD_S` at most.

        The thread ends before: whoever feeds the generation from then on may have its name in the group.
        """
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            self.check()
            check_stop(self._plan, self._generation, self._stop)
            try:
                ledger.switch_generation(connection, self._plan.name, self._generation, lambda: self._reach(connection))
            except (psycopg.errors.LockNotAvailable, _Short) as error:
                if time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"{self._plan.name}: {self._generation} does not come up with the one that serves"
                    ) from error
                self._stop.wait(LOOK_S)
            else:
                return

    def _reach(self, connection: Connection) -> None:
        deadline = time.monotonic() + HOLD_S
        while ledger.is_short(connection, self._plan.name, self._generation, self._plan.topics):
            self.check()
            if time.monotonic() > deadline or self._stop.wait(LOOK_S):
                raise _Short
        self._end()

    def check(self) -> None:
        """Raise what ended the thread, if something did."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                session = Session(self._plan, self._stations, self._generation, self._ended, stack)
                while not self._ended.is_set() and not self._stop.is_set():
                    self._round(session)
        except BaseException as error:  # noqa: BLE001  # raised by check, on the thread that builds
            self._failure = error

    def _round(self, session: Session) -> None:
        """Apply as many messages as are published now; it is close behind if that is quickly done."""
        began = time.monotonic()
        self._behind = left = session.lag()
        while left > 0 and (done := session.step()) and not self._ended.is_set() and not self._stop.is_set():
            left -= done
            self._done += done
        if (left <= 0 or session.lag() == 0) and time.monotonic() - began < CLOSE_S:
            self._close.set()
        if self._behind == 0 and not self._ended.wait(LOOK_S):
            self._done += session.step()
