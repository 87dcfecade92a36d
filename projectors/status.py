"""The state of relay, projectors and stores, as ``outbox status`` shows it.

A module of its own that imports little: people wait for the answer, and the rest of the read side takes longer to
import than all questions here to be answered.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, LiteralString

from outbox.database import Connection, connected
from projectors import ledger, placement
from projectors.layout import Layout
from projectors.pulse import pulses

NO_LEASE: Final = (None, 0, False)
_LEASE: Final = "SELECT holder, epoch, expires_at > clock_timestamp() FROM outbox.lease WHERE name = %s"
_WAITING: Final = """
SELECT count(*) FROM outbox.outbox o
WHERE NOT EXISTS (SELECT FROM outbox.relay_cursor c WHERE c.name = %s AND pg_visible_in_snapshot(o.xid, c.a))
"""
# Until they are back, or forgotten, the outbox grows.
_AWAY: Final = """
SELECT name FROM outbox.relay_cursor c WHERE name <> %s
    AND NOT EXISTS (SELECT FROM outbox.lease l WHERE l.name = c.name AND l.expires_at > clock_timestamp())
ORDER BY name
"""
_HEALTH: Final = "SELECT projector, health, extract(epoch FROM clock_timestamp() - at) FROM outbox.projector"


def status(layout: Layout) -> dict[str, Any]:
    """Lag, health, parked streams and dead letters as PostgreSQL knows them, and whether each store answers now.

    ``{"log": {"last_position"}, "relay": {"leader": NAME or null, "epoch", "waiting": rows not yet published,
    "parked": [{"topic", "key"}], "away": [names of other relays for which the outbox is kept and that do not run]},
    "projectors": [{"projector", "store", "generation": NAME or null, "serves_in": the store that this one is in or null
    if that is not known, "changed": what to do if the settings name another, or "", "lag": messages
    or null before the first generation, "health": what the projector said last, "seen_s_ago": when, or null,
    "answers": whether its store answers now or null if that cannot be asked, "said": what the store said,
    "dead_letters"}]}``
    """
    with connected(layout.dsn) as connection:
        found = {
            "log": {"last_position": _one(connection, "SELECT coalesce(max(position), 0) FROM outbox.event")[0]},
            "relay": _relay(connection, layout.settings.relay.name),
        }
        projectors = _projectors(connection, layout)
    stores = {projecting.store for projecting in layout.projecting.values()}
    asked = pulses({store: layout.store_settings(store) for store in stores})
    for projector in projectors:
        pulse = asked[projector["store"]]
        projector |= {"answers": pulse.answers, "said": pulse.said}
    return {**found, "projectors": projectors}


def _one(connection: Connection, query: LiteralString, *parameters: object) -> tuple[Any, ...]:
    """The first row; only the lease's query can have none."""
    row = connection.execute(query, parameters).fetchone()
    return row if row is not None else NO_LEASE


def _relay(connection: Connection, name: str) -> dict[str, Any]:
    holder, epoch, leads = _one(connection, _LEASE, name)
    parked = connection.execute("SELECT DISTINCT topic, key FROM outbox.parked ORDER BY 1, 2")
    return {
        "leader": holder if leads else None,
        "epoch": epoch,
        "waiting": _one(connection, _WAITING, name)[0],
        "parked": [{"topic": topic, "key": key} for topic, key in parked],
        "away": [other for (other,) in connection.execute(_AWAY, [name])],
    }


def _projectors(connection: Connection, layout: Layout) -> list[dict[str, Any]]:
    health = {p: (said, round(float(age), 1)) for p, said, age in connection.execute(_HEALTH)}
    letters = Counter((d.projector, d.generation) for d in ledger.dead_letters(connection))
    places = placement.serving(connection, layout.projecting)
    found = []
    for name, projecting in layout.projecting.items():
        topics = layout.topics(layout.projection(name))
        place = places.get(name)
        generation = place.generation if place else None
        elsewhere = place is not None and not placement.is_in(place, projecting.store)
        said, age = health.get(name, ("never ran", None))
        found.append(
            {
                "projector": name,
                "store": projecting.store,
                "generation": generation,
                "serves_in": place.store if place else None,
                "changed": str(placement.changed(name, place, projecting.store)) if place and elsewhere else "",
                "lag": ledger.lag(connection, name, generation, topics) if generation else None,
                "health": said,
                "seen_s_ago": age,
                "dead_letters": letters[name, generation or ""],
            }
        )
    return found
