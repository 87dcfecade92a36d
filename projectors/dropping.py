"""Generations that are not needed any more, dropped in the store that each is in (:mod:`projectors.placement`)."""

from __future__ import annotations

from dataclasses import dataclass

from outbox.database import Connection, first_line
from outbox.errors import OutboxError
from outbox.logs import logger
from projectors import ledger
from projectors.ledger import Generation
from projectors.pipeline import Plan
from projectors.session import Stations

log = logger("outbox.rebuild")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A generation that is kept in a store which the settings do not name (any more): "" for a rollback, else since it
    could not be dropped: ``why``."""

    generation: str
    store: str
    why: str = ""


def drop(
    connection: Connection, plan: Plan, stations: Stations, old: Generation, lead: str | None = None
) -> Elsewhere | None:
    """Drop a generation in the store that it is in, and forget it. ``lead``: the generation to which that store's alias
    is led before.

    One that is in another store than the settings name is kept if it cannot be dropped (that store is down, or the
    settings no longer say where it is), and returned: a build does not need it. The next one tries again.
    """
    store = old.store or plan.store
    try:
        with stations.sink() if store == plan.store else stations.sink_in(store) as sink:
            if lead is not None:
                sink.switch(lead)
            ledger.forget_progress(connection, plan.name, old.name)  # cut off here, a build loads all of it anew
            sink.drop(old.name)
    except OutboxError as error:
        if store == plan.store:
            raise
        why = first_line(error)
        log.warning("not dropped", projector=plan.name, generation=old.name, store=store, error=why)
        return Elsewhere(old.name, store, why)
    ledger.forget_generation(connection, plan.name, old.name)
    return None
