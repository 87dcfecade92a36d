"""The write side put together: settings in, parts out. The only place that knows both modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from outbox.broker.protocol import Broker
from outbox.codec import Registry
from outbox.database import Connection, connect
from outbox.embedded import embedded_postgres
from outbox.log.migrate import migrate
from outbox.relay.relay import Relay
from outbox.settings import Settings


@dataclass(frozen=True, slots=True)
class WriteSide:
    """The parts of the write side. ``dsn`` is where PostgreSQL is in either mode."""

    settings: Settings
    dsn: str
    registry: Registry

    def connection(self) -> Connection:
        """A new connection (autocommit)."""
        return connect(self.dsn)

    def broker(self) -> Broker:
        """A new broker object; nothing is connected yet."""
        if self.settings.mode == "embedded":
            from outbox.broker.local import LocalBroker

            return LocalBroker(self.dsn)
        from outbox.broker.kafka import open_kafka

        return open_kafka(self.settings.kafka_settings())

    def relay(self) -> Relay:
        return Relay(self.dsn, self.broker, self.settings.relay_settings())


@contextmanager
def open_write_side(settings: Settings) -> Iterator[WriteSide]:
    """In the embedded mode start PostgreSQL and migrate it; on servers, take them as they are."""
    registry = Registry.load(*settings.schemas)
    if settings.mode == "servers" or settings.database.dsn:
        yield WriteSide(settings, settings.dsn, registry)
        return
    with embedded_postgres(settings.data_dir / "postgres") as dsn:
        with connect(dsn) as connection:
            migrate(connection)
        yield WriteSide(settings, dsn, registry)
