"""Rebuild: a new generation from the log while the old one serves, then one switch. And the first build.

The steps of :func:`build`, each of which may be the last thing a crash lets happen:

1. Find a name under which the store holds nothing. Write the generation down as *building*, with the offsets
   published now (one transaction).
   Crash: the next build goes on with it, unless it is too old for the broker to have kept what followed.
2. Load the log stream by stream, last states only, noting the last stream done.
   Crash: goes on behind that stream; what was loaded twice, the version guard makes harmless.
3. Catch up from the offsets of step 1 through the broker, as any projector does, until it is close behind.
   Everything committed after step 1 comes this way, so nothing falls between the log and the broker.
4. Verify (if asked) against the log, still catching up. A generation that differs is dropped.
5. Switch the store's own alias, then the one truth: the row that says which generation serves. That once the new one
   has all that the old one was seen to have, whose checkpoints stand still until then.
   Crash between the two: the alias shows the new generation, whole but fed by nobody, until the projector
   starts anew (it points the alias back) or the next build repeats this step.
6. Drop generations older than the one kept for rollback. Crash: the next build does it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, Self

import psycopg

from outbox.database import Connection, connected
from outbox.errors import OutboxError, ProjectionError, RecordsRefused, VerificationFailed, WaitTimeout
from outbox.logs import logger
from projectors import ledger
from projectors.folding import Failure
from projectors.ledger import DeadLetter, Generation
from projectors.model import model
from projectors.pipeline import Plan, embedded
from projectors.record import Change
from projectors.resilience import resilient
from projectors.session import Session, Stations
from projectors.sinks.protocol import Sink
from projectors.skipping import Skipping, skipping

log = logger("outbox.rebuild")

LOAD_BATCH: Final = 1_000
"""Changes in one write of the load: two are under way at most, so memory stays flat."""
FIRST_BATCH: Final = 250
"""In the first one, for which the store waits; each is twice the one before."""

CATCH_UP_S: Final = 600.0
CLOSE_S: Final = 1.0
"""A generation that applies what was published in less than this is close enough to serve: with writers going on
it never stands still at nothing left."""

HOLD_S: Final = 5.0
"""How long the serving generation is held, at a time, for the new one to come up with it."""

RESUME_WITHIN_S: Final = 3_600.0
"""An unfinished build that has lain longer is dropped: the broker may not have kept what followed its beginning."""

LOOK_S: Final = 0.05
TRIAL: Final = "trial"
"""The generation that a dry run writes to and drops (:mod:`projectors.forecast`); the ledger never knows of it."""

BUILD_LOCK: Final = 0x6F62

Progress = Callable[[str, int, int], None]
"""Told the phase, the streams and the records done so far."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did."""

    projector: str
    generation: str
    streams: int
    records: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Next:
    """What the next build does with generations: the one it builds (``after``: the last stream loaded already, ""
    if it begins anew), those it drops first, since they were left unfinished for too long, and those at its end."""

    generation: str
    after: str
    discards: Sequence[str]
    drops: Sequence[str]


class _Short(Exception):
    """The new generation did not come up with the one that serves while that one was held."""


class Building(OutboxError):
    """This projector is being built: by another process now, or by this one, which was told to stop."""


def rebuild(
    plan: Plan,
    stations: Stations,
    *,
    stop: threading.Event | None = None,
    verify: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a new generation and switch to it; goes on with one that was left unfinished.

    Raises :class:`Building` if another process is at it, :class:`~outbox.errors.StoreUnavailable` and the
    like if a part is down (run it again: it goes on where it stopped).
    """
    with connected(stations.dsn) as connection:
        lock(connection, plan.name)
        return build(connection, plan, stations, stop or threading.Event(), verify, progress)


def first_build(plan: Plan, stations: Stations, stop: threading.Event) -> str:
    """The serving generation; builds it if there is none, or waits for the process that does. "" if stopped."""
    while not stop.is_set():
        with connected(stations.dsn) as connection:
            found = ledger.serving(connection, plan.name)
            if found is not None:
                _point_back(connection, plan, stations, found)
                return found
            try:
                lock(connection, plan.name)
                return ledger.serving(connection, plan.name) or build(connection, plan, stations, stop).generation
            except Building:
                stop.wait(0.2)
    return ""


def _point_back(connection: Connection, plan: Plan, stations: Stations, serving: str) -> None:
    """Lead the store's alias to what serves, if a build was killed that may have led it away."""
    if not any(g.state == "building" for g in ledger.generations(connection, plan.name)):
        return
    try:
        lock(connection, plan.name)
    except Building:
        return  # it goes on, and the alias is its own
    with stations.sink() as sink:
        sink.switch(serving)


def build(
    connection: Connection,
    plan: Plan,
    stations: Stations,
    stop: threading.Event,
    verify: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Built:
    """The steps above. The caller holds the lock."""
    started = time.monotonic()
    tell = progress or (lambda *_: None)
    coming = upcoming(connection, plan.name)
    for old in coming.discards:
        _discard(connection, plan, stations, old)
    loading, skipped = skipping(connection, plan)
    with ExitStack() as stack:
        sink = resilient(stack.enter_context(stations.sink()), plan.name, stations.resilience, stop)
        sink.drop(TRIAL)  # what a dry run left that was killed
        generation = _begin(connection, plan, sink, coming.generation)
        streams, records = _Load(connection, loading, skipped, stations, sink, generation, tell).run(stop)
    _check_stop(plan, generation.name, stop)
    try:
        with _CatchingUp(plan, stations, generation.name, stop) as catching_up:
            catching_up.wait(tell)
            _check_stop(plan, generation.name, stop)
            if verify is not None:
                tell("verify", streams, records)
                verify(generation.name)
            catching_up.check()
            with stations.sink() as sink:
                sink.switch(generation.name)
            catching_up.hand_over(connection)
    except VerificationFailed:
        _discard(connection, plan, stations, generation.name)  # going on with it would only fail again
        raise
    with stations.sink() as sink:
        _drop_old(connection, plan, sink)
    log.info("switched", projector=plan.name, generation=generation.name, records=records)
    return Built(plan.name, generation.name, streams, records, time.monotonic() - started)


def rollback(plan: Plan, stations: Stations) -> str:
    """Let the generation that served before serve again, at once; it catches up from its own checkpoint, and until then
    lacks what came since it was replaced, waited for or not. After a crash run it again: the store's alias may lead to
    it though the row does not.

    Raises :class:`~outbox.errors.ProjectionError` if none is kept, :class:`Building` while a build goes on.
    """
    with connected(stations.dsn) as connection:
        lock(connection, plan.name)
        earlier = earlier_generation(connection, plan.name)
        with stations.sink() as sink:
            sink.switch(earlier)
        ledger.switch_generation(connection, plan.name, earlier)
        return earlier


def earlier_generation(connection: Connection, projector: str) -> str:
    """The one that a rollback goes back to. Raises :class:`~outbox.errors.ProjectionError` if none is kept."""
    retired = [g.name for g in ledger.generations(connection, projector) if g.state == "retired"]
    if not retired:
        raise ProjectionError(f"{projector}: no earlier generation is kept, nothing to roll back to")
    return retired[-1]


def upcoming(connection: Connection, projector: str) -> Next:
    """What :func:`build` would do now."""
    known = ledger.generations(connection, projector)
    unfinished = [g for g in known if g.state == "building"]
    serving = [g.name for g in known if g.state == "serving"]
    retired = [g.name for g in known if g.state == "retired"]
    # The one that serves now is retired by the switch, after all others; without one, the last retired is kept.
    drops = retired if serving else retired[:-1]
    if unfinished and unfinished[-1].age_s < RESUME_WITHIN_S:
        return Next(unfinished[-1].name, unfinished[-1].progress or "", (), drops)
    name = f"g{max((int(g.name[1:]) for g in known), default=0) + 1}"
    return Next(name, "", [g.name for g in unfinished], drops)


def lock(connection: Connection, projector: str) -> None:
    """Be the only one to build, for as long as the connection lives. Raises :class:`Building` if another is at it."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", [BUILD_LOCK, projector]).fetchone()
    if row is None or not row[0]:
        raise Building(f"{projector}: another process is building it now")


def _begin(connection: Connection, plan: Plan, sink: Sink, name: str) -> Generation:
    """The generation of that name, prepared: the unfinished one to go on with, or a new one."""
    for known in ledger.generations(connection, plan.name):
        if known.name == name:
            sink.prepare(name)
            return known
    name = _free(sink, name)
    ledger.begin_generation(connection, plan.name, name, plan.topics)
    return Generation(name, "building", None, 0, 0.0)


def _free(sink: Sink, name: str) -> str:
    """The name, or the next one that is free in the store, prepared.

    Records that are there already belong to another log: of a database that is no more, or of another service whose
    projector has the same name. Their versions could win over ours, and they are not ours to drop.
    """
    sink.prepare(name)
    while next(sink.scan(name), None) is not None:
        log.warning("left alone, since it is not ours", generation=name)
        name = f"g{int(name[1:]) + 1}"
        sink.prepare(name)
    return name


def _discard(connection: Connection, plan: Plan, stations: Stations, generation: str) -> None:
    """Drop an unfinished generation. Its build may have been killed once the store's alias led to it: readers
    are led back first."""
    serving = ledger.serving(connection, plan.name)
    with stations.sink() as sink:
        if serving is not None:
            sink.switch(serving)
        ledger.forget_progress(connection, plan.name, generation)  # cut off here, the next build loads all of it
        sink.drop(generation)
    ledger.forget_generation(connection, plan.name, generation)


def _check_stop(plan: Plan, generation: str, stop: threading.Event) -> None:
    if stop.is_set():
        raise Building(f"{plan.name}: stopped while building {generation}; run it again to go on")


class _Load:
    """Step 2: the log into the store, in batches, writing one while folding and embedding the next."""

    def __init__(
        self,
        connection: Connection,
        plan: Plan,
        skipped: Skipping,
        stations: Stations,
        sink: Sink,
        generation: Generation,
        tell: Progress,
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._skipped = skipped
        self._stations = stations
        self._sink = sink
        self._generation = generation
        self._tell = tell
        self._streams = 0
        self._records = generation.records

    def run(self, stop: threading.Event) -> tuple[int, int]:
        """Returns the streams and records loaded."""
        batch: list[Change] = []
        writing: Future[None] | None = None
        stream, after, most = "", self._generation.progress or "", min(FIRST_BATCH, LOAD_BATCH)
        ledger.unpark_behind(self._connection, self._plan.name, self._generation.name, after)
        with connected(self._stations.dsn) as reading, ThreadPoolExecutor(1, "load") as writer:
            for modelled in model(reading, self._plan, self._stations.registry, after_stream=after):
                if stop.is_set():
                    break
                stream = modelled.stream
                self._streams += 1
                if modelled.failure is not None:
                    self._park(modelled.failure)
                batch += modelled.changes()
                if len(batch) >= most:
                    writing, batch = self._next(writer, writing, batch, stream), []
                    most = min(2 * most, LOAD_BATCH)
            if stream:
                self._next(writer, writing, batch, stream).result()
        return self._streams, self._records

    def _next(
        self, writer: ThreadPoolExecutor, writing: Future[None] | None, batch: Sequence[Change], stream: str
    ) -> Future[None]:
        """Write a batch once the one before it is written. Texts become vectors here and not in the writer's thread:
        meanwhile the store takes the batch before."""
        ready = embedded(batch, self._plan.embed)
        if writing is not None:
            writing.result()
        self._records += len(ready)
        return writer.submit(self._write, ready, stream, self._streams, self._records)

    def _write(self, batch: Sequence[Change], stream: str, streams: int, records: int) -> None:
        try:
            self._sink.apply(self._generation.name, batch)
        except RecordsRefused as error:
            for change in batch:
                if change.key in error.reasons:
                    self._park(Failure(change.stream, change.version, "", f"{change.key}: {error.reasons[change.key]}"))
        ledger.note_progress(self._connection, self._plan.name, self._generation.name, stream, records)
        self._tell("load", streams, records)

    def _park(self, failure: Failure) -> None:
        letter = DeadLetter(
            self._plan.name,
            self._generation.name,
            failure.stream,
            failure.version,
            failure.type,
            failure.error,
            1,
        )
        # What was given up meanwhile: whoever follows the generation once it serves tries the stream once more.
        given_up = self._skipped.given_up_since(self._connection, self._plan.name, failure)
        ledger.park(self._connection, letter, retry=given_up)


class _CatchingUp:
    """Steps 3 and 4: follows the broker on a thread of its own until the block ends."""

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
            _check_stop(self._plan, self._generation, self._stop)
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


def _drop_old(connection: Connection, plan: Plan, sink: Sink) -> None:
    """All retired generations but the one that served last."""
    retired = [g for g in ledger.generations(connection, plan.name) if g.state == "retired"]
    for old in retired[:-1]:
        sink.drop(old.name)
        ledger.forget_generation(connection, plan.name, old.name)
