"""Two outboxes for Python, each draining rows of its own table into Kafka: txoutbox 0.2.2 and omni-box 0.3.1.

Both are asyncio, asyncpg and aiokafka, and set up as their own documentation says, with what makes them quicker:
batches and concurrency far above their defaults, lz4, no lingering. Each runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol

import psutil
import psycopg
from psycopg import conninfo

from benchmarks.draining import WARM_SHARE
from benchmarks.elsewhere import elsewhere
from benchmarks.waiting import VALUE_BYTES, texts, values

BATCH_MAX: Final = 1_000
"""Twenty times txoutbox's default, ten times what omni-box's documentation shows; larger ones gain nothing."""
PUBLISH_WITHIN_S: Final = 30.0
"""As omni-box's default. txoutbox's own, 5 s, is for batches of fifty: what it gives up waits for a second."""
CHANNEL: Final = "outbox_rows"
TEXTS: Final = texts(VALUE_BYTES - len('{"text":""}'))
"""What omni-box, which takes no bytes, makes JSON of."""


class Peer(Protocol):
    """One of them, opened on a database of its own and a topic."""

    def fill(self, dsn: str, topic: str, rows: int, keys: int) -> None:
        """Write rows of ``keys`` new keys in turn."""

    def drain(self, dsn: str, bootstrap: str, rows: int) -> float:
        """Rows a second, after the first tenth."""


class TxOutbox:
    """Its ``Relay`` over its ``PostgresStorage``."""

    def fill(self, dsn: str, topic: str, rows: int, keys: int) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute(
                "INSERT INTO outbox (topic, key, payload)"
                " SELECT %s, %s || n %% %s, (%b::bytea[])[n %% %s + 1] FROM generate_series(0, %s - 1) n",
                [topic, uuid.uuid4().hex, keys, values(), len(values()), rows],
            )

    def drain(self, dsn: str, bootstrap: str, rows: int) -> float:
        return asyncio.run(self._drain(dsn, bootstrap, rows))

    def migrate(self, dsn: str, *, notify: bool = False) -> None:
        """Make its table, with a trigger that notifies of each row if asked to."""
        from txoutbox.adapters.postgres import PostgresStorage

        storage = PostgresStorage(None, notify_channel=CHANNEL if notify else None)
        with psycopg.connect(dsn) as connection:
            connection.execute(storage.schema_sql())

    @staticmethod
    def insert(connection: psycopg.Connection[Any], topic: str, key: str, payload: bytes, id_: str) -> None:
        """One row, with its id as a header."""
        connection.execute(
            "INSERT INTO outbox (topic, key, payload, headers) VALUES (%s, %s, %b, jsonb_build_object('id', %s::text))",
            [topic, key, payload, id_],
        )

    @contextmanager
    def running(self, dsn: str, bootstrap: str) -> Iterator[psutil.Process]:
        """Its relay as a process, which wakes when it is notified, until the block ends."""
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(dsn, bootstrap), daemon=True)
        process.start()
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.join()

    async def serve(self, dsn: str, bootstrap: str) -> None:
        async with (
            self._relay(dsn, bootstrap, BATCH_MAX, notify=True) as (relay, storage),
            await storage.listen(relay.wake),
        ):
            await relay.run(handle_signals=True)

    async def _drain(self, dsn: str, bootstrap: str, rows: int) -> float:
        async with self._relay(dsn, bootstrap, batch(rows)) as (relay, _):

            async def step() -> int:
                done: int = (await relay.run_once()).published
                return done

            return await timed(step, rows)

    @asynccontextmanager
    async def _relay(
        self, dsn: str, bootstrap: str, size: int, *, notify: bool = False
    ) -> AsyncIterator[tuple[Any, Any]]:
        from txoutbox import Relay, RelayConfig
        from txoutbox.adapters.postgres import PostgresStorage

        async with producing(bootstrap) as producer:

            async def publish(message: Any) -> None:
                headers = [(name, value.encode()) for name, value in message.headers.items()]
                await producer.send_and_wait(message.topic, message.payload, key=message.key.encode(), headers=headers)

            url = _url(dsn, "postgresql")
            storage = await PostgresStorage.connect(url, notify_channel=CHANNEL if notify else None)
            config = RelayConfig(batch_size=size, concurrency=size, publish_timeout=PUBLISH_WITHIN_S)
            try:
                yield Relay(storage, publish, config=config), storage
            finally:
                await storage.close()


class OmniBox:
    """Its ``OutboxPublisher`` over its ``PostgresOutboxRepository``, a transaction a batch."""

    def fill(self, dsn: str, topic: str, rows: int, keys: int) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute(
                "INSERT INTO outbox_events (id, event_type, payload, status, attempts_made, max_attempts,"
                " scheduled_at, created_at, aggregate_type, aggregate_id, topic, partition_key)"
                " SELECT gen_random_uuid(), 'entity.upserted', jsonb_build_object('text', (%s::text[])[n %% %s + 1]),"
                " 'pending', 0, 6, now(), clock_timestamp(), 'customer', gen_random_uuid(), %s, %s || n %% %s"
                " FROM generate_series(0, %s - 1) n",
                [TEXTS, len(TEXTS), topic, uuid.uuid4().hex, keys, rows],
            )

    def drain(self, dsn: str, bootstrap: str, rows: int) -> float:
        return asyncio.run(self._drain(dsn, bootstrap, rows))

    def migrate(self, dsn: str) -> None:
        from sqlalchemy import create_engine

        engine = create_engine(_url(dsn, "postgresql+psycopg"))
        omnibox_table().metadata.create_all(engine)
        engine.dispose()

    async def _drain(self, dsn: str, bootstrap: str, rows: int) -> float:
        from omni_box import OutboxPublisher
        from omni_box.core.converters import RawEventConverter
        from omni_box.infra.brokers.kafka import KafkaEventPublisher
        from omni_box.infra.storage.postgres import PostgresOutboxRepository
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        engine, table = create_async_engine(_url(dsn, "postgresql+asyncpg")), omnibox_table()
        async with producing(bootstrap) as producer:
            broker = KafkaEventPublisher(producer=producer, converter=RawEventConverter())

            async def step() -> int:
                async with AsyncSession(engine) as session, session.begin():
                    publisher = OutboxPublisher(PostgresOutboxRepository(session, model_class=table), broker)
                    done = await publisher.publish_batch(worker_id="benchmark", batch_size=batch(rows))
                return len(done.processed_event_ids)

            try:
                return await timed(step, rows)
            finally:
                await engine.dispose()


def omnibox_table() -> Any:
    """Its table, as a model of SQLAlchemy's."""
    from omni_box.infra.storage.postgres.orm import OutboxEventDBBase
    from sqlalchemy.orm import DeclarativeBase

    class Base(DeclarativeBase):
        pass

    class Row(Base, OutboxEventDBBase):  # type: ignore[misc]
        __tablename__ = "outbox_events"

    return Row


PEERS: Final[dict[str, tuple[str, Any]]] = {
    "txoutbox": ("txoutbox", TxOutbox()),
    "omni-box": ("omni_box", OmniBox()),
}
"""By name: the module that has to be installed, and how it is driven."""


def rate(name: str, dsn: str, bootstrap: str, topic: str, rows: int, keys: int) -> float:
    """Fill a peer's table, and have it drain it in a process of its own."""
    peer: Peer = PEERS[name][1]
    peer.fill(dsn, topic, rows, min(keys, rows))
    return elsewhere(_drain, name, dsn, bootstrap, rows)


def _serve(dsn: str, bootstrap: str) -> None:
    asyncio.run(TxOutbox().serve(dsn, bootstrap))


def _drain(name: str, dsn: str, bootstrap: str, rows: int) -> float:
    peer: Peer = PEERS[name][1]
    return peer.drain(dsn, bootstrap, rows)


def batch(rows: int) -> int:
    """Rows a batch: never more than what warms up."""
    return min(BATCH_MAX, rows // WARM_SHARE)


@asynccontextmanager
async def producing(bootstrap: str) -> AsyncIterator[Any]:
    """A producer of aiokafka's, as durable as ours."""
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        acks="all",
        compression_type="lz4",
        max_batch_size=1 << 18,
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def timed(step: Callable[[], Awaitable[int]], rows: int) -> float:
    """Rows a second, step by step, after a tenth of them. Raises RuntimeError if a step publishes none."""
    warm = await published(step, rows // WARM_SHARE)
    began = time.perf_counter()
    done = await published(step, rows - warm)
    return done / (time.perf_counter() - began)


async def published(step: Callable[[], Awaitable[int]], rows: int) -> int:
    done = 0
    while done < rows:
        count = await step()
        if not count:
            raise RuntimeError(f"{done} of {rows} rows were published, and no more")
        done += count
    return done


def _url(dsn: str, scheme: str) -> str:
    """What asyncpg and SQLAlchemy take: they know no ``name=value`` DSN."""
    given = conninfo.conninfo_to_dict(dsn)
    password = f":{given['password']}" if given.get("password") else ""
    return f"{scheme}://{given['user']}{password}@{given['host']}:{given.get('port', 5432)}/{given['dbname']}"
