"""In which store each generation is, and what follows if the settings name another one by now.

A checkpoint says what a generation has, and a generation is in one store. A projector whose ``store`` was changed finds
no generation in the new one; if it went on from its checkpoints, that store would get what is new and nothing else. So
what follows the settings (a session, a rollback, a verification) refuses a generation of another store by
:class:`~outbox.errors.StoreChanged`. A build makes its generation in the store that is named now, whatever served
before; readers ask the store in which what serves was built. A store's name decides, not its address: servers move.

Imports little: `outbox status` is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from outbox.database import Connection
from outbox.errors import StoreChanged
from projectors.ledger import Generation

_SERVING: Final = """
SELECT projector, generation, store FROM outbox.generation WHERE projector = ANY (%s) AND state = 'serving'
"""
_STORE: Final = "SELECT store FROM outbox.generation WHERE projector = %s AND generation = %s"
_CLAIM: Final = "UPDATE outbox.generation SET store = %s WHERE projector = %s AND store IS NULL"


@dataclass(frozen=True, slots=True)
class Place:
    """A generation and its store; None: that is not known, and taken to be the one that the settings name."""

    generation: str
    store: str | None


def serving(connection: Connection, projectors: Iterable[str]) -> dict[str, Place]:
    """The generations that serve and where they are, by projector; those of which none serves are left out."""
    rows = connection.execute(_SERVING, [list(projectors)])
    return {projector: Place(generation, store) for projector, generation, store in rows}


def serving_here(connection: Connection, projector: str, store: str) -> str | None:
    """The generation that serves, if one does. Raises :class:`~outbox.errors.StoreChanged` if it is elsewhere."""
    place = serving(connection, [projector]).get(projector)
    if place is None:
        return None
    if not is_in(place, store):
        raise changed(projector, place, store)
    return place.generation


def check(connection: Connection, projector: str, generation: str, store: str) -> None:
    """Raise :class:`~outbox.errors.StoreChanged` unless the generation is in this store.

    Of generations whose store is not known it is written down to be this one: of two members with different settings
    the first is believed.
    """
    row = connection.execute(_STORE, [projector, generation]).fetchone()
    if row == (None,):
        claim(connection, projector, store)
        row = connection.execute(_STORE, [projector, generation]).fetchone()
    if row is not None and row[0] != store:
        raise changed(projector, Place(generation, row[0]), store)


def claim(connection: Connection, projector: str, store: str) -> None:
    """Write down that the projector's generations whose store is not known are in this one."""
    connection.execute(_CLAIM, [store, projector])


def is_in(placed: Place | Generation, store: str) -> bool:
    """Whether the generation is in this store, as far as is known."""
    return placed.store in (None, store)


def changed(projector: str, place: Place, store: str) -> StoreChanged:
    """The error, with what to do. ``store``: the one that the settings name."""
    return StoreChanged(
        f"{projector}: its records ({place.generation}) are in {place.store}, and its settings name {store}: either set"
        f" projectors.{projector}.store to {place.store!r}, or run `outbox rebuild {projector}`, which builds them in"
        f" {store} while {place.store} answers, and then lets {store} serve"
    )
