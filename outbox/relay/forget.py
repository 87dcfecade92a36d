"""Giving a relay up for good: as long as it has a cursor, the outbox is kept for what it has not published."""

from __future__ import annotations

from typing import Final

from outbox.database import Connection
from outbox.errors import RelayInUse
from outbox.relay.slot import drop_older

# Whoever still has the lease in its hands is fenced, and whoever wants it waits until this is over.
_FENCE: Final = """
UPDATE outbox.lease SET epoch = epoch + 1, expires_at = '-infinity' WHERE name = %s
    AND expires_at < clock_timestamp() RETURNING epoch
"""
_HOLDER: Final = "SELECT holder FROM outbox.lease WHERE name = %s"
_PARKED: Final = "SELECT count(*) FROM outbox.parked WHERE relay = %s"
_FORGET: Final = "DELETE FROM outbox.relay_cursor WHERE name = %s"
_NAMES: Final = "SELECT name FROM outbox.relay_cursor ORDER BY name"


def forget(connection: Connection, name: str) -> None:
    """Remove the cursor of a relay that will never run again, and its slots; the outbox is not kept for it any more.

    Raises :class:`~outbox.errors.RelayInUse`, and changes nothing, if it leads, has rows parked or is not known.
    """
    with connection.transaction():
        fenced = connection.execute(_FENCE, [name]).fetchone()
        holder = connection.execute(_HOLDER, [name]).fetchone()
        if fenced is None and holder is not None:
            raise RelayInUse(f"relay {name!r} is led by {holder[0]}: stop it first")
        row = connection.execute(_PARKED, [name]).fetchone()
        if row is not None and row[0]:
            raise RelayInUse(
                f"relay {name!r} has {row[0]} parked row(s): with relay.name = {name!r} set, have them tried again or"
                " discard them (`outbox parked list`)"
            )
        if not connection.execute(_FORGET, [name]).rowcount:
            known = ", ".join(repr(other) for (other,) in connection.execute(_NAMES)) or "there is none"
            raise RelayInUse(f"no relay {name!r} is known: {known}")
    if fenced is not None:
        drop_older(connection, name, fenced[0])
