"""Rows the broker refuses for good, and the later rows of the same key, which wait behind them in order."""

from __future__ import annotations

from typing import Final

from outbox.database import Connection
from outbox.relay.poll import OutboxRow

_PARK: Final = """
INSERT INTO outbox.parked (relay, topic, key, seq, position, headers, payload, reason)
SELECT %(relay)s, %(topic)s, %(key)s, %(seq)s, %(position)s,
       (SELECT headers FROM outbox.outbox WHERE seq = %(seq)s AND position IS NULL),
       (SELECT payload FROM outbox.outbox WHERE seq = %(seq)s AND position IS NULL), %(reason)s
ON CONFLICT DO NOTHING
"""
BEHIND: Final = "waits behind an earlier row of its key"


class Parking:
    """The parked keys of one relay; few, so they are kept in memory."""

    def __init__(self, connection: Connection, relay: str) -> None:
        self._connection = connection
        self._relay = relay
        rows = connection.execute("SELECT DISTINCT topic, key FROM outbox.parked WHERE relay = %s", [relay])
        self._keys = {(topic, key) for topic, key in rows}

    def __contains__(self, row: OutboxRow) -> bool:
        return (row.message.topic, row.message.key) in self._keys

    def park(self, row: OutboxRow, reason: str = BEHIND) -> None:
        """Write the row down as parked, and hold its key back from now on."""
        message = row.message
        self._connection.execute(
            _PARK,
            {
                "relay": self._relay,
                "topic": message.topic,
                "key": message.key,
                "seq": row.seq,
                "position": row.position,
                "reason": reason,
            },
        )
        self._keys.add((message.topic, message.key))
