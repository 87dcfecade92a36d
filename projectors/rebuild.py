"""Rebuild: a new generation from the log while the old one serves, then one switch. And the first build.

The steps of :func:`build`, each of which may be the last thing a crash lets happen:

1. Write down the generation as *building*, with the offsets published now (one transaction).
   Crash: the next build goes on with it.
2. Load the log stream by stream, last states only, noting the last stream done.
   Crash: goes on behind that stream; what was loaded twice, the version guard makes harmless.
3. Catch up from the offsets of step 1 through the broker, as any projector does, until nothing is left.
   Everything committed after step 1 comes this way, so nothing falls between the log and the broker.
4. Verify (if asked) against the log.
5. Switch the store's own alias, then the one truth: the row that says which generation serves.
   Crash between the two: the alias runs ahead of the row until the next build repeats this step.
6. Drop generations older than the one kept for rollback.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Final

import structlog

from outbox.database import Connection, connected
from outbox.errors import OutboxError, ProjectionError, RecordsRefused, WaitTimeout
from projectors import ledger
from projectors.ledger import DeadLetter, Generation
from projectors.model import Modelled, model
from projectors.pipeline import Plan, embedded
from projectors.record import Change
from projectors.resilience import resilient
from projectors.runner import Session, Stations
from projectors.sinks.protocol import Sink

log = structlog.get_logger("outbox.rebuild")

LOAD_BATCH: Final = 1_000
"""Changes in one write of the load: two are under way at most, so memory stays flat."""

CATCH_UP_S: Final = 600.0
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


class Building(OutboxError):
    """Another process is building this projector now."""


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
        _lock(connection, plan.name)
        return build(connection, plan, stations, stop or threading.Event(), verify, progress)


def first_build(plan: Plan, stations: Stations, stop: threading.Event) -> str:
    """The serving generation; builds it if there is none, or waits for the process that does."""
    while not stop.is_set():
        with connected(stations.dsn) as connection:
            found = ledger.serving(connection, plan.name)
            if found is not None:
                return found
            try:
                _lock(connection, plan.name)
            except Building:
                stop.wait(0.2)
                continue
            return ledger.serving(connection, plan.name) or build(connection, plan, stations, stop).generation
    return ""


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
    generation = _begin(connection, plan)
    with ExitStack() as stack:
        sink = resilient(stack.enter_context(stations.sink()), plan.name, stations.resilience, stop)
        sink.prepare(generation.name)
        streams, records = _Load(connection, plan, stations, sink, generation, tell).run(stop)
        if stop.is_set():
            raise Building(f"{plan.name}: stopped while building {generation.name}; run it again to go on")
    _catch_up(plan, stations, generation.name, stop, tell)
    if verify is not None:
        tell("verify", streams, records)
        verify(generation.name)
    with ExitStack() as stack:
        sink = stack.enter_context(stations.sink())
        sink.switch(generation.name)
        ledger.switch_generation(connection, plan.name, generation.name)
        _drop_old(connection, plan, sink)
    log.info("switched", projector=plan.name, generation=generation.name, records=records)
    return Built(plan.name, generation.name, streams, records, time.monotonic() - started)


def rollback(plan: Plan, stations: Stations) -> str:
    """Let the generation that served before serve again; it catches up from its own checkpoint."""
    with connected(stations.dsn) as connection:
        _lock(connection, plan.name)
        retired = [g for g in ledger.generations(connection, plan.name) if g.state == "retired"]
        if not retired:
            raise ProjectionError(f"{plan.name}: no earlier generation is kept, nothing to roll back to")
        with stations.sink() as sink:
            sink.switch(retired[-1].name)
        ledger.switch_generation(connection, plan.name, retired[-1].name)
        return retired[-1].name


def _lock(connection: Connection, projector: str) -> None:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", [BUILD_LOCK, projector]).fetchone()
    if row is None or not row[0]:
        raise Building(f"{projector}: another process is building it now")


def _begin(connection: Connection, plan: Plan) -> Generation:
    known = ledger.generations(connection, plan.name)
    unfinished = [g for g in known if g.state == "building"]
    if unfinished:
        return unfinished[-1]
    names = {g.name for g in known}
    name = next(n for i in count(len(known) + 1) if (n := f"g{i}") not in names)
    ledger.begin_generation(connection, plan.name, name, plan.topics)
    return Generation(name, "building", None, 0)


class _Load:
    """Step 2: the log into the store, in batches, writing one while folding the next."""

    def __init__(
        self, connection: Connection, plan: Plan, stations: Stations, sink: Sink, generation: Generation, tell: Progress
    ) -> None:
        self._connection = connection
        self._plan = plan
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
        last: Modelled | None = None
        with connected(self._stations.dsn) as reading, ThreadPoolExecutor(1, "load") as writer:
            after = self._generation.progress or ""
            for last in model(reading, self._plan, self._stations.registry, after_stream=after):
                self._streams += 1
                if last.error is not None:
                    self._park(last)
                batch += last.changes()
                if len(batch) >= LOAD_BATCH:
                    self._settle(writing)
                    writing, batch = self._start(writer, batch, last.stream), []
                if stop.is_set():
                    break
            self._settle(writing)
            if last is not None and not stop.is_set():
                self._settle(self._start(writer, batch, last.stream))
        return self._streams, self._records

    def _start(self, writer: ThreadPoolExecutor, batch: Sequence[Change], stream: str) -> Future[None]:
        self._records += len(batch)
        done = self._records
        return writer.submit(self._write, batch, stream, done)

    def _write(self, batch: Sequence[Change], stream: str, records: int) -> None:
        try:
            self._sink.apply(self._generation.name, embedded(batch, self._plan.embed))
        except RecordsRefused as error:
            for change in {c.stream: c for c in batch if c.key in error.reasons}.values():
                self._park(Modelled(change.stream, change.version, "", (), error.reasons[change.key]))
        ledger.note_progress(self._connection, self._plan.name, self._generation.name, stream, records)
        self._tell("load", self._streams, records)

    def _settle(self, writing: Future[None] | None) -> None:
        if writing is not None:
            writing.result()

    def _park(self, stream: Modelled) -> None:
        ledger.park(
            self._connection,
            DeadLetter(
                self._plan.name,
                self._generation.name,
                stream.stream,
                stream.version,
                stream.type,
                stream.error or "",
                1,
            ),
        )


def _catch_up(plan: Plan, stations: Stations, generation: str, stop: threading.Event, tell: Progress) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    with ExitStack() as stack:
        session = Session(plan, stations, generation, stop, stack)
        done = 0
        while (behind := session.lag()) and not stop.is_set():
            done += session.step()
            tell("catch up", done, behind)
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{plan.name}: {generation} is {behind} messages behind after {CATCH_UP_S:.0f} s")


def _drop_old(connection: Connection, plan: Plan, sink: Sink) -> None:
    retired = [g for g in ledger.generations(connection, plan.name) if g.state == "retired"]
    newest = max(retired, key=lambda g: int(g.name[1:]), default=None)
    for old in retired:
        if old is not newest:
            sink.drop(old.name)
            ledger.forget_generation(connection, plan.name, old.name)
