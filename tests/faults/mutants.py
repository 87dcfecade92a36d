"""Sabotage: each takes one of the product's guards away, in the processes of one run, so that the harness must notice.

A mutant is armed by name through the environment (``launch.py``), or in the run's database. The product holds no
switch for any of them. ``caught_by`` names the fault under which the guard is what keeps things right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.faults.points import replace

MUTANT = "OUTBOX_TEST_MUTANT"


@dataclass(frozen=True)
class Mutant:
    """``apply`` runs in each process before the product's main, ``database`` once on the run's database."""

    name: str
    caught_by: str
    apply: Callable[[], None] = lambda: None
    database: str = ""
    attempts: int = 5
    """Races have to be won to show: so many seeds are tried."""


MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, caught_by: str, attempts: int = 5) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a sabotage."""

    def register(apply: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[name] = Mutant(name, caught_by, apply, attempts=attempts)
        return apply

    return register


def arm(environment: Mapping[str, str]) -> None:
    """Apply the sabotage that this process's environment names, if it names one."""
    if name := environment.get(MUTANT):
        MUTANTS[name].apply()


def sabotage(connection: psycopg.Connection[Any], name: str) -> None:
    """The part of a sabotage that is done in the database."""
    if statement := MUTANTS[name].database:
        connection.execute(statement)


def _swap(module: str, path: str, old: str, new: str) -> None:
    """Change a static text of the product; a text that is not there any more is an error of ours."""

    def changed(text: str) -> str:
        if old not in text:
            raise LookupError(f"{module}.{path} has no {old!r}: the sabotage is out of date")
        return text.replace(old, new)

    replace(module, path, changed)


@mutant("version guard", "projector: late zombie")
def _version_guard() -> None:
    """PostgreSQL's sink writes whatever comes last."""
    _swap("projectors.sinks.postgres", "_UPSERT", "WHERE t.version < excluded.version", "")


@mutant("tombstone", "projector: late zombie, killed after its write")
def _tombstone() -> None:
    """A deletion deletes, and leaves nothing behind that an older write would have to beat."""

    def deleting(write: Callable[..., None]) -> Callable[..., None]:
        def wrapper(connection: Any, upsert: Any, lines: Any, refused: Any) -> None:
            write(connection, upsert, lines, refused)
            table = upsert.as_string(connection).split("INSERT INTO ")[1].split(" AS ")[0]
            connection.execute(f"DELETE FROM {table} WHERE deleted")

        return wrapper

    replace("projectors.sinks.postgres", "_write", deleting)


@mutant("fence: a late write is written over from the log", "projector: zombie between Chroma's read and its write")
def _fence() -> None:
    """Nothing is done about a write that came late."""
    replace("projectors.late", "Late._put_right", lambda _: lambda _self, _generation: None)


@mutant("fence: checkpoints never go back", "projector: late zombie")
def _checkpoint_fence() -> None:
    """A zombie's checkpoint goes back behind its successor's."""
    _swap("projectors.ledger", "_SAVE", 'WHERE c."offset" < excluded."offset"', "WHERE true")


@mutant("ledger: the versions that Chroma's sink reads first", "projector: late zombie, killed after its write, Chroma")
def _ledger() -> None:
    """What is stored looks older than anything."""
    replace("projectors.sinks.chroma", "_version", lambda _: lambda _metadata: 0)


@mutant("checkpoint after apply", "projector: killed before the store write")
def _checkpoint_after_apply() -> None:
    """The checkpoint is written first."""

    def early(fold: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(session: Any, deliveries: Any, after: Any = None) -> Any:
            from outbox.broker.protocol import TopicPartition

            offsets = {TopicPartition(d.topic, d.partition): d.offset + 1 for d in deliveries}
            if offsets:
                session._checkpoint(offsets, set())
            return fold(session, deliveries, after)

        return wrapper

    replace("projectors.session", "Session._fold", early)


@mutant("epoch", "relay: stopped, replaced, continued")
def _epoch() -> None:
    """A deposed leader's cursor is written like any other."""
    _swap(
        "outbox.relay.cursor",
        "_ADVANCE",
        "WHERE name = %(name)s AND epoch = %(epoch)s RETURNING",
        "WHERE name = %(name)s RETURNING",
    )


@mutant("exactly once: the cursor is in the broker's transaction", "relay: killed after the commit, exactly once")
def _note() -> None:
    """What was published is committed without the note that says so."""
    replace("outbox.broker.transactions", "KafkaTransactions._put", lambda _: lambda _self, _note: None)


@mutant("snapshot delta", "writer: long transaction")
def _snapshot_delta() -> None:
    """Rows of transactions that were open when the last window ended are passed by, as with ``seq > last``."""
    _swap(
        "outbox.relay.poll",
        "_BEGIN",
        "SELECT * FROM outbox.outbox WHERE xid = ANY (%(in_progress)s::text[]::xid8[])",
        "SELECT * FROM outbox.outbox WHERE xid = ANY (%(in_progress)s::text[]::xid8[]) AND false",
    )


@mutant("transaction boundary", "writer: killed before COMMIT")
def _transaction_boundary() -> None:
    """The append commits by itself, whatever becomes of the transaction round it."""

    def apart(append: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(connection: Any, *arguments: Any, **named: Any) -> Any:
            with psycopg.connect(connection.info.dsn, autocommit=True) as other:
                return append(other, *arguments, **named)

        return wrapper

    replace("tests.faults.writer", "append", apart)


MUTANTS["UNIQUE"] = Mutant(
    "UNIQUE",
    "relay: killed at read",
    database="ALTER TABLE outbox.event DROP CONSTRAINT event_stream_version;"
    "CREATE INDEX ON outbox.event (stream, version)",
)
