"""What must be true when a run is over. Each check names the invariant it is of, and what breaks it.

I1 every acknowledged event is in the log, and its effect in every store · I2 versions of a stream are 1..n in order,
in the log and on the broker · I3 each store equals the model · I4 nothing is anywhere that is not in the log · I5 no
effect of a stale epoch or version · I6 converged within the bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.faults.history import History
from tests.faults.model import Expected, LogRow
from tests.faults.stores import Held

NAMED_MAX = 5
"""So many examples of one kind are told."""


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


@dataclass(frozen=True)
class Published:
    """One message on the broker, in the order of its partition."""

    stream: str
    version: int
    id: str


def log_rows(connection: psycopg.Connection[Any]) -> list[LogRow]:
    """The log, by position."""
    found = connection.execute("SELECT stream, version, id::text FROM outbox.event ORDER BY position")
    return [LogRow(*row) for row in found]


def check_log(log: Sequence[LogRow], history: History, business: set[str]) -> Iterator[Violation]:
    """The log against the writers' histories and the table they changed in the same transactions."""
    there = {row.id for row in log}
    yield from _each("I1", "acknowledged and not in the log", history.of("ok") - there)
    yield from _each("I4", "in the log and never tried", there - history.tried.keys())
    yield from _each("I4", "in the log though it was rolled back", there & history.of("failed"))
    yield from _each("I1", "the table was changed, the event is not in the log", business - there)
    yield from _each("I1", "the event is in the log, the table was not changed", there - business)
    streams: dict[str, list[int]] = defaultdict(list)
    for row in log:
        streams[row.stream].append(row.version)
    broken = {s for s, versions in streams.items() if versions != list(range(1, len(versions) + 1))}
    yield from _each("I2", "versions in the log are not 1..n in order", broken)
    yield from _each("I4", "in the log under another stream", {r.id for r in log if _astray(r, history)})


def _astray(row: LogRow, history: History) -> bool:
    return row.id in history.tried and history.tried[row.id].stream != row.stream


def check_broker(
    messages: Iterable[Sequence[Published]], log: Sequence[LogRow], *, whole: bool = True, once: bool = False
) -> Iterator[Violation]:
    """Each partition's messages: again is allowed, out of turn is not, and every event comes.

    ``once``: again is not allowed. ``whole``: nothing was taken from the topic; else a stream may begin anywhere.
    """
    known = {(row.stream, row.version): row.id for row in log}
    seen: dict[str, int] = {}
    turned, strange, again = set(), set(), set()
    for partition in messages:
        for message in partition:
            before = seen.get(message.stream, 0 if whole else message.version - 1)
            if known.get((message.stream, message.version)) != message.id:
                strange.add(message.id)
            if message.version > before + 1:
                turned.add(f"{message.stream}@{message.version} after {before}")
            if message.version <= before:
                again.add(f"{message.stream}@{message.version}")
            seen[message.stream] = max(before, message.version)
    yield from _each("I4", "on the broker and not so in the log", strange)
    yield from _each("I2", "out of turn on the broker", turned)
    if once:
        yield from _each("I5", "seen more than once by a reader of committed messages", again)
    if whole:
        yield from _each("I1", "not on the broker", {r.id for r in log if r.version > seen.get(r.stream, 0)})


def check_store(name: str, held: Mapping[str, Held], model: Mapping[str, Expected]) -> Iterator[Violation]:
    """A store against the model."""
    yield from _each("I1", f"missing in {name}", model.keys() - held.keys())
    yield from _each("I4", f"in {name} and not in the log", held.keys() - model.keys())
    both = held.keys() & model.keys()
    other = {key for key in both if held[key].content != model[key].content}
    chains = {key for key in other if "chain" in model[key].content}
    yield from _each("I2", f"events not applied in order, once each, in {name}", chains)
    yield from _each("I3", f"not what the log says in {name}", other - chains)
    ages = {k for k in both - other if not model[k].least <= held[k].version <= model[k].greatest}
    yield from _each("I3", f"of a version that it cannot be of in {name}", ages)


def check_audit(connection: psycopg.Connection[Any]) -> Iterator[Violation]:
    """What the triggers of ``audit.sql`` have seen."""
    for what, before, after in connection.execute("SELECT what, before, after FROM audit.lowered LIMIT 5"):
        yield Violation("I5", f"{what} went back from {before} to {after}")
    owners: dict[str, tuple[int, int]] = {}
    for name, backend, epoch in connection.execute("SELECT name, backend, epoch FROM audit.cursor ORDER BY n"):
        known = owners.get(name)
        if known is None or epoch > known[1]:
            owners[name] = (backend, epoch)
        elif backend != known[0]:
            yield Violation("I5", f"the cursor of {name!r} was written by a leader deposed before epoch {epoch}")
            return


def check_generations(connection: psycopg.Connection[Any]) -> Iterator[Violation]:
    """No table of rows is left of a generation that nobody knows."""
    left = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'outbox_rows' AND c.relkind = 'r' AND NOT EXISTS (SELECT FROM outbox.generation g"
        " WHERE c.relname = g.projector || ':' || g.generation)"
    )
    yield from _each("I4", "a table of a generation that is not known", {name for (name,) in left})


def _each(invariant: str, what: str, found: Iterable[str]) -> Iterator[Violation]:
    names = sorted(found)
    if names:
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        yield Violation(invariant, f"{what}: {', '.join(names[:NAMED_MAX])}{more}")
