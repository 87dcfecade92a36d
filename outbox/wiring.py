"""The write side put together: settings in, parts out. The only place that knows both modes.

Imports stand inside the functions: a command that asks PostgreSQL one thing must not load relay and brokers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from outbox.settings import Settings

if TYPE_CHECKING:
    from outbox.broker.protocol import Broker
    from outbox.codec import Registry
    from outbox.database import Connection
    from outbox.relay.relay import Relay


@dataclass(frozen=True, slots=True)
class WriteSide:
    """The parts of the write side. ``dsn`` is where PostgreSQL is in either mode."""

    settings: Settings
    dsn: str
    registry: Registry

    def connection(self) -> Connection:
        """A new connection (autocommit)."""
        from outbox.database import connect

        return connect(self.dsn)

    def broker(self, *, named: bool = False) -> Broker:
        """A new broker object; nothing is connected yet.

        ``named``: its consumers join their groups as ``kafka.member``. That is for projectors: whoever reads a
        topic's end and goes must leave its group when it does, and a member with a name never leaves.
        """
        if self.settings.mode == "embedded":
            from outbox.broker.local import LocalBroker

            return LocalBroker(self.dsn)
        from outbox.broker.kafka import open_kafka

        kafka = self.settings.kafka_settings()
        return open_kafka(kafka if named else replace(kafka, member=None))

    @property
    def safe_s(self) -> float:
        """How long a projector that stands still keeps its partitions, at least."""
        if self.settings.mode == "embedded":
            from outbox.broker.local_settings import LocalSettings

            return LocalSettings().safe_s
        return self.settings.kafka_settings().safe_s

    def relay(self) -> Relay:
        from outbox.relay.relay import Relay

        return Relay(self.dsn, self.broker, self.settings.relay_settings())


@contextmanager
def open_write_side(settings: Settings) -> Iterator[WriteSide]:
    """The whole write side, its schemas read and checked first. Raises :class:`~outbox.errors.SchemaError`."""
    from outbox.codec import Registry

    registry = Registry.load(*settings.schemas)
    with open_database(settings) as dsn:
        yield WriteSide(settings, dsn, registry)


@contextmanager
def open_database(settings: Settings) -> Iterator[str]:
    """PostgreSQL's DSN: in the embedded mode it is started and migrated; on servers it is taken as it is."""
    if settings.mode == "servers" or settings.database.dsn:
        yield settings.dsn
        return
    from outbox.database import connect
    from outbox.embedded import embedded_postgres
    from outbox.log.migrate import migrate

    with embedded_postgres(settings.data_dir / "postgres") as dsn:
        with connect(dsn) as connection:
            migrate(connection)
        yield dsn
