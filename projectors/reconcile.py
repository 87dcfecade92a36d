"""Reconcile: bring stores and offsets back to a log that went back.

A record in a store may be of a version that the log has lost, live or as a tombstone, and the version guard
would keep it for good. No repair in place beats it in every store, and a tombstone cannot even be seen. So each
projector gets a new generation, which begins empty and is built from the log alone; the old ones are dropped,
since going back to one of them would bring the lost events back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from outbox.broker.protocol import Broker
from outbox.database import Connection, alone, connected
from outbox.envelope import topic_of
from outbox.errors import OutboxError, VerificationFailed
from outbox.log.identity import Identity, cursor_ahead, halt, read_identity
from outbox.log.read import categories
from outbox.logs import logger
from projectors import ledger
from projectors.building import Progress
from projectors.dropping import drop
from projectors.ledger import Generation
from projectors.pipeline import Plan
from projectors.rebuild import Built, rebuild
from projectors.session import Stations
from projectors.verify import Verifier
from projectors.wiring import ReadSide
from projectors.witness import forget_marks

log = logger("outbox.reconcile")

Tell = Callable[[int, int, str], None]
"""Told the records done, 0 (how many there are is not known) and what is being done."""

LEASE_WAIT_S: Final = 30.0
"""A relay that leads notices within its lease that it was fenced."""

LOOK_S: Final = 0.1

LEFTOVERS_MAX: Final = 16
"""Generations that a lost end of the ledger may have made in a store: as many rebuilds."""

LOCK: Final = 0x6F62_7263

_HORIZON: Final = "SELECT coalesce(min(pg_snapshot_xmin(a)::text::bigint), 3)::text FROM outbox.relay_cursor"
_RENEWED: Final = """
SELECT made_at >= (SELECT cut_at FROM outbox.log_identity) FROM outbox.generation
WHERE projector = %s AND generation = %s
"""
_LEFT: Final = """
SELECT DISTINCT projector FROM outbox.generation
WHERE projector <> ALL (%s) AND made_at < (SELECT cut_at FROM outbox.log_identity) ORDER BY 1
"""
_LEADS: Final = "SELECT holder FROM outbox.lease WHERE expires_at > clock_timestamp() LIMIT 1"
_FORGET_MAP: Final = "DELETE FROM outbox.published"
_MAP: Final = """
INSERT INTO outbox.published (topic, partition, "offset", horizon) VALUES (%s, %s, %s, %s::text::xid8)
"""
_TOPICS: Final = "SELECT DISTINCT topic FROM outbox.published"
# Rows that came from another cluster carry ids that this one has not reached: they would never be seen as over.
_OWN_EVENTS: Final = "UPDATE outbox.event SET xid = pg_current_xact_id() WHERE xid >= pg_snapshot_xmax(%s::pg_snapshot)"
_OWN_ROWS: Final = "UPDATE outbox.outbox SET xid = pg_current_xact_id()"
_RESET_CURSORS: Final = """
UPDATE outbox.relay_cursor
SET a = '3:3:', b = '3:3:', last = 0, epoch = epoch + 1, slot = NULL, lsn = NULL, part = NULL
"""
_DONE: Final = """
UPDATE outbox.log_identity
SET log_id = gen_random_uuid(), halted = NULL, system_identifier = %s, timeline = %s WHERE one
"""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconcile did: why it was needed ("" if nothing was wrong), and the new generations.

    ``left``: projectors that the settings do not name. They refuse to run until a reconcile with settings that do.
    """

    reason: str
    built: Sequence[Built]
    left: Sequence[str]
    seconds: float


def reconcile(side: ReadSide, *, force: bool = False, tell: Tell | None = None) -> Reconciled:
    """Bring every store and the map of what is published back to the log. Does nothing if the log never went back.

    1. Halt: no relay publishes and no projector applies from here on. Everything below may be done twice.
    2. If the tables came from another cluster: give their rows transaction ids of this one, and let the relays
       begin with what is in the outbox. In one transaction. What had been published is published again.
    3. Set the map of what is published to what the broker holds, so that new generations begin behind it: what
       lies before may be of the lost log.
    4. For each projector: drop the generations it had and what the lost log may have made, build a new one from
       the log, verify it, let it serve.
    5. Forget the marks of the projectors, which are of the old log; give this one a new identity and end the halt.

    A crash anywhere leaves the log halted: run it again. ``force``: as if the log had gone back. Raises
    :class:`~outbox.errors.OutboxError` if a relay goes on leading or another reconcile is under way.
    """
    started = time.monotonic()
    with connected(side.write.dsn) as connection:
        if not alone(connection, LOCK, "reconcile"):
            raise OutboxError("another `outbox reconcile` is under way")
        identity = read_identity(connection)
        reason = _reason(identity, force=force)
        if not reason:
            return Reconciled("", (), (), time.monotonic() - started)
        halt(connection, reason)
        _wait_for_relays(connection)
        _own(connection, identity)
        _map(connection, side)
        built = [_renew(connection, side, name, tell) for name in side.projecting]
        left = [name for (name,) in connection.execute(_LEFT, [list(side.projecting)])]
        forget_marks(side.witnesses)
        connection.execute(_DONE, [identity.system_now, identity.timeline_now])
    log.info("reconciled", reason=reason, projectors=len(built))
    return Reconciled(reason, built, left, time.monotonic() - started)


def _reason(identity: Identity, *, force: bool) -> str:
    if identity.halted is not None:
        return identity.halted
    if identity.system_now != identity.system_identifier:
        return "the log was moved to another cluster"
    if identity.promoted:
        return "PostgreSQL was promoted"
    return "asked for" if force else ""


def _wait_for_relays(connection: Connection) -> None:
    deadline = time.monotonic() + LEASE_WAIT_S
    while (row := connection.execute(_LEADS).fetchone()) is not None:
        if time.monotonic() > deadline:
            raise OutboxError(f"relay {row[0]} goes on leading: stop it, then run `outbox reconcile` again")
        time.sleep(LOOK_S)


def _own(connection: Connection, identity: Identity) -> None:
    """Step 2. Also where a cursor is ahead of every transaction, which comes of the same."""
    if identity.system_now == identity.system_identifier and cursor_ahead(connection) is None:
        return
    with connection.transaction():
        connection.execute("SET LOCAL outbox.erasure = 'on'")
        row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
        connection.execute(_OWN_EVENTS, [row[0] if row else ""])
        connection.execute(_OWN_ROWS)
        connection.execute(_RESET_CURSORS)


def _map(connection: Connection, side: ReadSide) -> None:
    """Step 3."""
    broker = side.write.broker()
    try:
        topics = {t for (t,) in connection.execute(_TOPICS)} | {t for p in side.plans().values() for t in p.topics}
        own = {topic_of(side.settings.prefix, category) for category in categories(connection)}
        _set_map(connection, broker, sorted(topics | own))
    finally:
        broker.close()


def _set_map(connection: Connection, broker: Broker, topics: Sequence[str]) -> None:
    with connection.transaction():
        row = connection.execute(_HORIZON).fetchone()
        connection.execute(_FORGET_MAP)
        for (topic, partition), end in sorted(broker.ends(topics).items()):
            connection.execute(_MAP, [topic, partition, end - 1, row[0] if row else "3"])


def _renew(connection: Connection, side: ReadSide, name: str, tell: Tell | None) -> Built:
    """Step 4 for one projector. One whose serving generation was made after the halt was done before a crash."""
    plan, stations = side.plan(name), replace(side.stations(name), witness=None)
    known = ledger.generations(connection, name)
    serving = next((g for g in known if g.state == "serving"), None)
    if serving is None or not _renewed(connection, name, serving.name):
        _clear(connection, plan, stations, known)
        done = rebuild(plan, stations, verify=lambda g: _verified(side, name, g), progress=_progress(name, tell))
    else:
        done = Built(name, serving.name, 0, serving.records, 0.0)
    others = [g for g in ledger.generations(connection, name) if g.state != "serving"]
    left = [drop(connection, plan, stations, old) for old in others]
    return replace(done, elsewhere=[one for one in left if one is not None])


def _renewed(connection: Connection, projector: str, generation: str) -> bool:
    row = connection.execute(_RENEWED, [projector, generation]).fetchone()
    return bool(row and row[0])


def _clear(connection: Connection, plan: Plan, stations: Stations, known: Sequence[Generation]) -> None:
    """Drop what must not be gone on with, whoever began it: unfinished builds, and the names to come."""
    for unfinished in known:
        if unfinished.state == "building":
            drop(connection, plan, stations, unfinished)
    last = max((int(g.name[1:]) for g in known), default=0)
    with stations.sink() as sink:
        for number in range(last + 1, last + 1 + LEFTOVERS_MAX):
            sink.drop(f"g{number}")


def _verified(side: ReadSide, name: str, generation: str) -> None:
    """Raise :class:`~outbox.errors.VerificationFailed` unless the generation is equal to the log."""
    with connected(side.write.dsn) as connection, side.open_sink(name) as sink:
        report = Verifier(connection, side.plan(name), sink, generation, side.write.registry).verify()
    if not report.clean:
        raise VerificationFailed(f"{name}: {sum(report.counts.values())} records of {generation} differ from the log")


def _progress(name: str, tell: Tell | None) -> Progress | None:
    return (lambda phase, streams, records: tell(records, 0, f"{name}: {phase}, {streams} streams")) if tell else None
