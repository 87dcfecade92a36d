"""Rebuild: a new generation from the log while the old one serves, then one switch. And the first build.

The steps of :func:`build`, each of which may be the last thing a crash lets happen:

1. Find a name under which the store holds nothing. Write the generation down as *building*, with the offsets
   published now (one transaction).
   Crash: the next build goes on with it, unless it is too old for the broker to have kept what followed.
2. Load the log stream by stream, last states only, noting the last stream done (:mod:`projectors.loading`).
   Crash: goes on behind that stream; what was loaded twice, the version guard makes harmless.
3. Catch up from the offsets of step 1 through the broker, as any projector does, until it is close behind
   (:mod:`projectors.catching_up`).
   Everything committed after step 1 comes this way, so nothing falls between the log and the broker.
4. Verify (if asked) against the log, still catching up. A generation that differs is dropped.
5. Switch the store's own alias, then the one truth: the row that says which generation serves. That once the new one
   has all that the old one was seen to have, whose checkpoints stand still until then.
   Crash between the two: the alias shows the new generation, whole but fed by nobody, until the projector
   starts anew (it points the alias back) or the next build repeats this step.
6. Drop generations older than the one kept for rollback. Crash: the next build does it.

The settings may name another store than the one that what serves is in (:mod:`projectors.placement`): then step 5 lets
the other store serve, and the switch of its alias is its first. What is unfinished in any other store is not gone on
with, and is dropped there like what is old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from outbox.database import Connection, connected
from outbox.errors import ProjectionError, StoreChanged, VerificationFailed
from outbox.logs import logger
from projectors import ledger, placement
from projectors.building import Building, Progress, check_stop, lock
from projectors.catching_up import CatchingUp
from projectors.dropping import Elsewhere, drop
from projectors.ledger import Generation
from projectors.loading import Load
from projectors.pipeline import Plan
from projectors.placement import is_in, serving_here
from projectors.resilience import resilient
from projectors.session import Stations
from projectors.sinks.protocol import Sink
from projectors.skipping import skipping

log = logger("outbox.rebuild")

RESUME_WITHIN_S: Final = 3_600.0
"""An unfinished build that has lain longer is dropped: the broker may not have kept what followed its beginning."""

TRIAL: Final = "trial"
"""The generation that a dry run writes to and drops (:mod:`projectors.forecast`); the ledger never knows of it."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did. ``elsewhere``: older generations that stay in other stores than this one."""

    projector: str
    generation: str
    streams: int
    records: int
    seconds: float
    elsewhere: Sequence[Elsewhere] = ()


@dataclass(frozen=True, slots=True)
class Next:
    """What the next build does with generations: the one it builds (``after``: the last stream loaded already, ""
    if it begins anew), those it drops first, since they were left unfinished for too long or are in a store that is no
    longer named, and those at its end."""

    generation: str
    after: str
    discards: Sequence[Generation]
    drops: Sequence[Generation]


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
    """The serving generation; builds it if there is none, or waits for the process that does. "" if stopped.

    Raises :class:`~outbox.errors.StoreChanged` if it is in another store than the settings name.
    """
    while not stop.is_set():
        with connected(stations.dsn) as connection:
            _point_back(connection, plan, stations)
            if (serving := serving_here(connection, plan.name, plan.store)) is not None:
                return serving
            try:
                lock(connection, plan.name)
                built = serving_here(connection, plan.name, plan.store)
                return built or build(connection, plan, stations, stop).generation
            except Building:
                stop.wait(0.2)
    return ""


def _point_back(connection: Connection, plan: Plan, stations: Stations) -> None:
    """Lead the store's alias to the generation that serves, if a build was killed that may have led it away.

    It is looked up under the lock: a build that was waited for may have switched to its own.
    """
    if {"building", "serving"} <= {g.state for g in ledger.generations(connection, plan.name)}:
        with suppress(Building):  # it goes on, and the alias is its own
            lock(connection, plan.name)
            serving = serving_here(connection, plan.name, plan.store)
            if serving is not None:
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
    placement.claim(connection, plan.name, plan.store)
    coming = upcoming(connection, plan)
    left = [_discard(connection, plan, stations, old) for old in coming.discards]
    loading, skipped = skipping(connection, plan)
    with ExitStack() as stack:
        sink = resilient(stack.enter_context(stations.sink()), plan.name, stations.resilience, stop)
        sink.drop(TRIAL)  # what a dry run left that was killed
        generation = _begin(connection, plan, sink, coming.generation)
        streams, records = Load(connection, loading, skipped, stations, sink, generation, tell).run(stop)
    check_stop(plan, generation.name, stop)
    try:
        with CatchingUp(plan, stations, generation.name, stop) as catching_up:
            catching_up.wait(tell)
            check_stop(plan, generation.name, stop)
            if verify is not None:
                tell("verify", streams, records)
                verify(generation.name)
            catching_up.check()
            with stations.sink() as sink:
                sink.switch(generation.name)
            catching_up.hand_over(connection)
    except VerificationFailed:
        _discard(connection, plan, stations, generation)  # going on with it would only fail again
        raise
    left += _drop_old(connection, plan, stations)
    log.info("switched", projector=plan.name, generation=generation.name, store=plan.store, records=records)
    elsewhere = [one for one in left if one is not None]
    return Built(plan.name, generation.name, streams, records, time.monotonic() - started, elsewhere)


def rollback(plan: Plan, stations: Stations) -> str:
    """Let the generation that served before serve again, at once; it catches up from its own checkpoint, and until then
    lacks what came since it was replaced, waited for or not. After a crash run it again: the store's alias may lead to
    it though the row does not.

    Raises :class:`~outbox.errors.ProjectionError` if none is kept, :class:`~outbox.errors.StoreChanged` if it is in
    another store than the settings name, :class:`Building` while a build goes on.
    """
    with connected(stations.dsn) as connection:
        lock(connection, plan.name)
        earlier = earlier_generation(connection, plan)
        with stations.sink() as sink:
            sink.switch(earlier)
        ledger.switch_generation(connection, plan.name, earlier)
        return earlier


def earlier_generation(connection: Connection, plan: Plan) -> str:
    """The one that a rollback goes back to. Raises as :func:`rollback` does."""
    retired = [g for g in ledger.generations(connection, plan.name) if g.state == "retired"]
    if not retired:
        raise ProjectionError(f"{plan.name}: no earlier generation is kept, nothing to roll back to")
    if not is_in(retired[-1], plan.store):
        store = retired[-1].store
        raise StoreChanged(
            f"{plan.name}: what served before ({retired[-1].name}) is in {store}, and the settings name {plan.store}:"
            f" set projectors.{plan.name}.store to {store!r} to roll back to it"
        )
    return retired[-1].name


def upcoming(connection: Connection, plan: Plan) -> Next:
    """What :func:`build` would do now."""
    known = ledger.generations(connection, plan.name)
    unfinished = [g for g in known if g.state == "building"]
    serving = [g for g in known if g.state == "serving"]
    retired = [g for g in known if g.state == "retired"]
    # The one that serves now is retired by the switch, after all others; without one, the last retired is kept.
    drops = retired if serving else retired[:-1]
    last = next((g for g in reversed(unfinished) if is_in(g, plan.store)), None)
    if last is not None and last.age_s < RESUME_WITHIN_S:
        return Next(last.name, last.progress or "", [g for g in unfinished if g is not last], drops)
    name = f"g{max((int(g.name[1:]) for g in known), default=0) + 1}"
    return Next(name, "", unfinished, drops)


def _begin(connection: Connection, plan: Plan, sink: Sink, name: str) -> Generation:
    """The generation of that name, prepared: the unfinished one to go on with, or a new one."""
    for known in ledger.generations(connection, plan.name):
        if known.name == name:
            sink.prepare(name)
            return known
    name = _free(sink, name)
    ledger.begin_generation(connection, plan.name, name, plan.topics, plan.store)
    return Generation(name, "building", None, 0, 0.0, plan.store)


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


def _discard(connection: Connection, plan: Plan, stations: Stations, old: Generation) -> Elsewhere | None:
    """Drop an unfinished generation. Its build may have been killed once the store's alias led to it: readers
    are led back first, if what serves is in that store."""
    known = ledger.generations(connection, plan.name)
    serving = next((g.name for g in known if g.state == "serving" and g.store == old.store), None)
    return drop(connection, plan, stations, old, serving)


def _drop_old(connection: Connection, plan: Plan, stations: Stations) -> list[Elsewhere | None]:
    """All retired generations but the one that served last. Returns those that stay in other stores."""
    retired = [g for g in ledger.generations(connection, plan.name) if g.state == "retired"]
    left = [drop(connection, plan, stations, old) for old in retired[:-1]]
    kept = [Elsewhere(g.name, g.store) for g in retired[-1:] if g.store and not is_in(g, plan.store)]
    return [*left, *kept]
