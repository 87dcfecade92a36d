"""What the runs came to: results.json beside this file, and the table in docs/guarantees.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.plan import Outcome

OUTCOMES = Path(__file__).with_name("outcomes.jsonl")
"""Every run of the matrix as it ended: the table's record, and how one that is broken off is resumed."""
ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
GUARANTEES = ROOT / "docs" / "guarantees.md"
BEGIN = "<!-- faults: written by `make faults`, do not edit -->"
END = "<!-- faults: end -->"


@dataclass(frozen=True)
class Ran:
    """One run as it is written down. ``error``: the harness itself failed in it, so it is no run."""

    fault: str
    seed: int
    violations: tuple[str, ...]
    recovery_s: float | None
    took_s: float
    error: str | None


def note(outcome: Outcome, path: Path = OUTCOMES) -> None:
    """Add a run to the file."""
    told = tuple(map(str, outcome.violations))
    ran = Ran(outcome.fault, outcome.seed, told, outcome.recovery_s, outcome.took_s, outcome.error)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(ran)) + "\n")


def noted(path: Path = OUTCOMES) -> list[Ran]:
    """The runs in the file; none if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [Ran(**{**found, "violations": tuple(found["violations"])}) for found in map(json.loads, lines)]


@dataclass(frozen=True)
class FaultResult:
    """All runs of one fault. Times in seconds, of the runs that recovered; None if none did."""

    fault: str
    runs: int
    violations: int
    recovery_s_median: float | None
    recovery_s_max: float | None


@dataclass(frozen=True)
class MutantResult:
    mutant: str
    caught: bool
    fault: str
    by: str
    """The first violation that told."""


def summed(name: str, outcomes: Sequence[Ran]) -> FaultResult:
    """The runs of one fault put together. A run that the harness itself failed in is no run."""
    whole = [o for o in outcomes if o.error is None]
    recoveries = [o.recovery_s for o in whole if o.recovery_s is not None]
    return FaultResult(
        name,
        len(whole),
        sum(bool(o.violations) for o in whole),
        round(statistics.median(recoveries), 2) if recoveries else None,
        round(max(recoveries), 2) if recoveries else None,
    )


def save(faults: Iterable[FaultResult], mutants: Iterable[MutantResult], about: Mapping[str, object]) -> None:
    """Write results.json and the table. Mutants that were not tried now are as they were."""
    found = list(faults)
    caught = list(({m.mutant: m for m in _known_mutants()} | {m.mutant: m for m in mutants}).values())
    told = {"about": dict(about), "faults": [asdict(f) for f in found], "mutants": [asdict(m) for m in caught]}
    RESULTS.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    text = GUARANTEES.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest:
        before = text.rstrip("\n") + "\n\n## Faults it was put through\n\n"
    GUARANTEES.write_text(f"{before}{BEGIN}\n\n{table(found, caught, about)}\n{END}{after or chr(10)}", "utf-8")


def _known_mutants() -> list[MutantResult]:
    if not RESULTS.exists():
        return []
    return [MutantResult(**found) for found in json.loads(RESULTS.read_text("utf-8"))["mutants"]]


def table(faults: Sequence[FaultResult], mutants: Sequence[MutantResult], about: Mapping[str, object]) -> str:
    """Both tables as Markdown."""
    runs, violated = sum(f.runs for f in faults), sum(f.violations for f in faults)
    lines = [
        f"{len(faults)} faults, {runs} runs, {violated} with a violation ({about['when']}, on {about['cpus']} "
        f"CPUs, seeds {about['seeds']}). Recovery is counted from the end of the fault until every "
        "store equals the log, read by the store's own client.",
        "",
        "| fault | runs | violations | recovery, median | slowest |",
        "|---|--:|--:|--:|--:|",
        *(
            f"| {f.fault} | {f.runs} | {f.violations} | {_seconds(f.recovery_s_median)} | {_seconds(f.recovery_s_max)} |"
            for f in faults
        ),
        "",
        "Each guard taken away in turn, by a sabotage that exists only in the tests:",
        "",
        "| guard taken away | noticed | under | as |",
        "|---|---|---|---|",
        *(f"| {m.mutant} | {'yes' if m.caught else '**no**'} | {m.fault} | {_short(m.by)} |" for m in mutants),
        "",
    ]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _short(text: str) -> str:
    return text.split(": ", 2)[0] + ": " + text.split(": ", 2)[1] if text.count(": ") > 1 else text
