"""The same appends by the product and by eventsourcing 9.5, a Python peer: ``python -m benchmarks.peer_append``.

Each writes the same data into a database of its own on one server, a new stream with every transaction. The product
encodes to Avro, checks, and writes an outbox row besides.

* ``eventsourcing``: its ``EventStore`` as it comes: JSON, and ``PostgresApplicationRecorder`` (NOTIFY, table lock and
  INSERT, pipelined).
* ``recorder with functions``: its recorder alone, given bytes that were made beforehand, with its
  ``enable_db_functions`` (one call of a function, without the lock): the least the peer can do.

Needs the dependency group ``bench``, which ``make bench`` installs.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from psycopg import conninfo

from benchmarks import writers
from benchmarks.append import BATCH, DATA, ENCODED, append_batch, append_one
from benchmarks.databases import fresh_database
from benchmarks.measuring import interleaved
from benchmarks.peers import required
from benchmarks.results import Result, Target, at_least, beside
from benchmarks.running import options, run
from benchmarks.writers import Opening, Transaction, on_a_connection
from deploy.local.resolve import Resolved

OURS: Final = "append"


@dataclass(frozen=True)
class Peer:
    """Whether it encodes, and whether it calls functions of its own in the database."""

    encodes: bool
    functions: bool


PEERS: Final = {
    "eventsourcing": Peer(encodes=True, functions=False),
    "recorder with functions": Peer(encodes=False, functions=True),
}


@dataclass(frozen=True)
class Case:
    """How many write how many events a transaction, and the bound of the ratio."""

    name: str
    writers: int
    events: int
    target: Target


CASES: Final = [
    Case("1 writer, 1 event", 1, 1, at_least(8)),
    Case("4 writers, 1 event", 4, 1, at_least(8)),
    Case("1 writer, 100 events", 1, BATCH, at_least(5)),
    Case("4 writers, 100 events", 4, BATCH, at_least(5)),
]


def recorder(dsn: str, *, functions: bool) -> Any:
    """The peer's recorder, with one connection."""
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    given = conninfo.conninfo_to_dict(dsn)
    names = {"dbname": "dbname", "host": "host", "port": "port", "user": "user", "password": "password"}
    address = {name: str(given.get(key) or "") for name, key in names.items()}
    return PostgresApplicationRecorder(PostgresDatastore(**address, pool_size=1, enable_db_functions=functions))


def event_store(opened: Any) -> Any:
    """The peer's event store over a recorder, with the codecs its applications have."""
    from eventsourcing.persistence import DatetimeAsISO, EventStore, JSONTranscoder, Mapper, UUIDAsHex

    transcoder = JSONTranscoder()
    transcoder.register(UUIDAsHex())
    transcoder.register(DatetimeAsISO())
    return EventStore(Mapper(transcoder), opened)


@contextmanager
def recording(peer: Peer, events: int, dsn: str) -> Iterator[Transaction]:
    """A writer of the peer's: every transaction begins a new stream, as ours does."""
    from eventsourcing.persistence import StoredEvent

    opened = recorder(dsn, functions=peer.functions)
    store, upserted = event_store(opened), event_class()

    def encoding() -> int:
        stream = uuid.uuid4()
        store.put([upserted(stream, n + 1, upserted.create_timestamp(), DATA) for n in range(events)])
        return events

    def ready() -> int:
        stream = uuid.uuid4()
        opened.insert_events([StoredEvent(stream, n + 1, "entity.upserted", ENCODED) for n in range(events)])
        return events

    with closing(opened.datastore):
        yield encoding if peer.encodes else ready


def event_class() -> Any:
    """An event of the peer's that holds our data."""
    from eventsourcing.domain import DomainEvent

    class Upserted(DomainEvent):  # type: ignore[misc]
        data: dict[str, Any]

    return Upserted


def opening(contender: str, events: int) -> Opening:
    if contender == OURS:
        return partial(on_a_connection, append_one if events == 1 else append_batch)
    return partial(recording, PEERS[contender], events)


@contextmanager
def databases(server: str) -> Iterator[dict[str, str]]:
    """The DSN of each contender's own database, with its own tables."""
    with ExitStack() as stack:
        found = {OURS: stack.enter_context(fresh_database(server))}
        for contender, peer in PEERS.items():
            found[contender] = stack.enter_context(fresh_database(server, migrated=False))
            made = recorder(found[contender], functions=peer.functions)
            with closing(made.datastore):
                made.create_table()
        yield found


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    for case in (case for case in CASES if given.only in case.name):
        with databases(servers.address("postgres")) as dsns:
            turns = {
                name: partial(writers.rate, opening(name, case.events), dsn, case.writers, given.seconds)
                for name, dsn in dsns.items()
            }
            rates = interleaved(turns, given.rounds, warm_up=0 if given.quick else 1)
        for peer in PEERS:
            yield beside(f"{case.name}, {peer}", rates, (OURS, peer), "events/s", case.target)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one contender's turn")
    given = parser.parse_args()
    if given.quick:
        given.seconds = 0.05
    required("eventsourcing")
    run("peer_append", ["postgres"], measure, given)


if __name__ == "__main__":
    main()
