"""The two engines of the relay, opened as its settings say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from outbox.database import connected
from outbox.relay import slot
from outbox.relay.ahead import Engine, ReadAhead
from outbox.relay.cdc import CdcEngine
from outbox.relay.lease import Lease
from outbox.relay.poll import PLANNING, PollEngine
from outbox.relay.settings import RelaySettings


@contextmanager
def open_engine(dsn: str, lease: Lease, settings: RelaySettings, *, drain: bool = False) -> Iterator[ReadAhead]:
    """The engine for one term of a leader, on connections of its own.

    ``drain``: for publishing what is there and no more, which takes one look at the tables whatever the engine; the
    slot of the cdc engine is left as it is. With ``poll`` set, the slots an earlier cdc engine left are dropped.
    """
    with connected(dsn, **PLANNING) as connection:
        if settings.engine == "poll":
            slot.drop_older(connection, settings.name, lease.epoch)
        if settings.engine == "poll" or drain:
            engine: Engine = PollEngine(connection, settings.prefix)
        else:
            engine = CdcEngine(dsn, connection, lease, settings)
        with closing(ReadAhead(engine)) as ahead:
            yield ahead
