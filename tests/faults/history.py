"""What a writer knows of its own appends: tried, then ok, failed or unknown. One JSON value a line, a file a writer.

A line ``try`` is written before anything is sent, so whatever happens to the writer, no event of the log is unknown
to its history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

Outcome = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Tried:
    """One event that a writer wanted in the log."""

    id: str
    stream: str
    type: str
    data: Mapping[str, Any]


@dataclass
class History:
    """All writers' histories: every event tried, by id, and how its append ended."""

    tried: dict[str, Tried] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def of(self, outcome: Outcome) -> set[str]:
        """The ids of the events whose append ended so."""
        return {id_ for id_, found in self.outcomes.items() if found == outcome}


class Recorder:
    """Writes one history. Handed to the system line by line: a killed process loses nothing."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def trying(self, events: Iterable[Tried]) -> None:
        self._write({"try": [[e.id, e.stream, e.type, e.data] for e in events]})

    def ended(self, outcome: Outcome, ids: Iterable[str]) -> None:
        self._write({outcome: list(ids)})

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()


def read(paths: Iterable[Path]) -> History:
    """The histories put together. An append without an end is unknown."""
    history = History()
    for path in paths:
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else the writer was killed in it, before it sent anything
                _take(history, json.loads(line))
    return history


def _take(history: History, value: Mapping[str, Any]) -> None:
    ((word, given),) = value.items()
    if word == "try":
        for id_, stream, type_, data in given:
            history.tried[id_] = Tried(id_, stream, type_, data)
            history.outcomes[id_] = "unknown"
    else:
        history.outcomes.update(dict.fromkeys(given, word))
