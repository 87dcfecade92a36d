"""What a store should hold, worked out from the log's ids and the writers' own histories alone.

It shares no code with the product (no codec, no fold) nor with ``projection.py``: it asks, for each stream from its
end, what was said last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

from tests.faults.history import History, Tried

DELETED = "entity.deleted"
PATCHED = "entity.patched"


@dataclass(frozen=True)
class LogRow:
    """One event as it stands in the log."""

    stream: str
    version: int
    id: str


@dataclass(frozen=True)
class Expected:
    """One record: what it says, and the least and greatest version it may bear.

    A projector takes several events in one go, so a record that changed at version 3 may be written as of 5.
    """

    content: Mapping[str, Any]
    least: int
    greatest: int


def expected(log: Iterable[LogRow], history: History, *, poison: bool = True) -> dict[str, Expected]:
    """Every record by key. ``poison``: a stream stands still before its first event that cannot be folded."""
    records: dict[str, Expected] = {}
    for stream, rows in groupby(sorted(log, key=lambda r: (r.stream, r.version)), key=lambda r: r.stream):
        said = [history.tried[row.id] for row in rows]
        if poison:
            said = said[: next((n for n, one in enumerate(said) if _is_poison(one)), len(said))]
        records |= _records(stream, said)
    return records


def _is_poison(one: Tried) -> bool:
    return one.type not in (DELETED, PATCHED) or "!" in one.data.get("properties", {})


def _records(stream: str, said: Sequence[Tried]) -> dict[str, Expected]:
    count = len(said)
    begin = max((n for n, one in enumerate(said, 1) if one.type == DELETED), default=0)
    if not any(one.type == PATCHED for one in said[begin:]):
        return {}
    told: dict[str, list[tuple[int, int | None]]] = {}
    for version, one in enumerate(said[begin:], begin + 1):
        for name, value in one.data.get("properties", {}).items():
            told.setdefault(name, []).append((version, value))
    found = {stream: Expected({"events": count, "chain": _chain(said)}, count, count)}
    for name, values in told.items():
        last = values[-1][1]
        if last is not None and name != "!":
            found[f"{stream}#{name}"] = Expected({"value": last}, _since(values), count)
    return found


def _since(values: Sequence[tuple[int, int | None]]) -> int:
    """The version from which on the last value stood."""
    last = values[-1][1]
    since = values[-1][0]
    for version, value in reversed(values):
        if value != last:
            break
        since = version
    return since


def _chain(said: Sequence[Tried]) -> str:
    def link(before: str, numbered: tuple[int, str]) -> str:
        return hashlib.sha256(f"{before}{numbered[0]}:{numbered[1]}".encode()).hexdigest()[:16]

    return list(accumulate(enumerate((one.id for one in said), 1), link, initial=""))[-1]


def joined(records: Mapping[str, Expected]) -> dict[str, Expected]:
    """The same in a graph: a stream's node says to which parts its edges lead."""
    parts: dict[str, list[str]] = {key: [] for key in records if "#" not in key}
    for key in sorted(records):
        if "#" in key:
            parts[key.partition("#")[0]].append(key)
    return {
        key: replace(one, content={**one.content, "edges": parts[key]}) if key in parts else one
        for key, one in records.items()
    }
