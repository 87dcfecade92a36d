"""``python -m tests.faults``: the fault matrix, and the table it is published in. ``make faults`` runs it."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tests.faults.cases  # noqa: F401 - registers the faults
from tests.faults.faults import FAULTS, NOT_YET
from tests.faults.matrix import Budget, run_all, try_mutants
from tests.faults.mutants import MUTANTS
from tests.faults.plan import Outcome, Plan
from tests.faults.results import OUTCOMES, MutantResult, Ran, note, noted, save, summed
from tests.faults.servers import Servers, running

RUNS = 40
RUNS_MAX = 100_000
"""When the time is the bound."""


def main() -> int:
    # A time-out's SIGTERM ends it as Ctrl-C does: what has been found by then is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asked = _arguments()
    console = Console(stderr=True)
    if asked.list:
        console.print("\n".join([*FAULTS, "", "not yet:", *NOT_YET, "", "mutants:", *MUTANTS]))
        return 0
    plans = [plan for name, plan in FAULTS.items() if not asked.fault or _asked_for(name, asked.fault)]
    names = [name for name in MUTANTS if not asked.mutant or any(part in name for part in asked.mutant)]
    budget = _budget(asked)
    if _whole(asked) and not asked.resume:
        OUTCOMES.unlink(missing_ok=True)
    mutants: list[MutantResult] = []
    outcomes: list[Outcome] = []
    with running() as servers:
        try:
            for found in [] if asked.fault else _mutants(names, servers, budget.seed, console):
                mutants.append(found)
            outcomes += [] if asked.mutant else _faults(plans, servers, budget, console, keep=_kept(asked))
        finally:
            if _kept(asked):
                _save(mutants)
    return int(any(o.violations or o.error for o in outcomes) or not all(m.caught for m in mutants))


def _asked_for(name: str, wanted: Sequence[str]) -> bool:
    """By its whole name, or by a part of it that is no other's whole name: a replay runs one fault only."""
    return name in wanted or any(part in name for part in wanted if part not in FAULTS)


def _whole(asked: argparse.Namespace) -> bool:
    """Whether all of the matrix was asked for, and no replay."""
    return not asked.fault and not asked.mutant and asked.seed is None


def _kept(asked: argparse.Namespace) -> bool:
    """Whether the table is to be written: of a part of the matrix only if it is added to what is there."""
    return asked.seed is None and (_whole(asked) or asked.resume)


def _budget(asked: argparse.Namespace) -> Budget:
    if asked.seed is not None:
        return Budget(1, None, asked.seed, asked.lanes)
    runs = asked.runs or (RUNS if asked.minutes is None else RUNS_MAX)
    done = max((ran.seed for ran in noted()), default=0) if asked.resume else 0
    return Budget(max(0, runs - done), asked.minutes, done + 1, asked.lanes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, help=f"runs of each fault (default {RUNS}, or as the time allows)")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--lanes", type=int, default=2, help="runs at the same time, where they do not disturb others")
    parser.add_argument("--fault", action="append", help="only faults with this in their name; may be repeated")
    parser.add_argument("--mutant", action="append", help="only mutants with this in their name; no faults")
    parser.add_argument("--seed", type=int, help="one run with this seed: replays a failure")
    parser.add_argument("--resume", action="store_true", help="add to the runs there are, behind their last seed")
    parser.add_argument("--list", action="store_true", help="name the faults and mutants")
    return parser.parse_args()


def _faults(plans: Sequence[Plan], servers: Servers, budget: Budget, console: Console, *, keep: bool) -> list[Outcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=len(plans) * budget.runs)

        def tell(outcome: Outcome) -> None:
            if keep:
                note(outcome)
            progress.advance(task)
            progress.update(task, description=f"{outcome.fault} #{outcome.seed} {outcome.took_s:.1f} s")
            if outcome.violations or outcome.error:
                progress.console.print(_told(outcome), markup=False, soft_wrap=True)

        return run_all(plans, servers, budget, tell)


def _told(outcome: Outcome) -> str:
    said = [f"  {violation}" for violation in outcome.violations] + ([f"  {outcome.error}"] if outcome.error else [])
    kind = "VIOLATION" if outcome.violations else "the harness failed"
    again = f"  replay: python -m tests.faults --fault '{outcome.fault}' --seed {outcome.seed}  (logs: {outcome.kept})"
    return "\n".join([f"{kind}: {outcome.fault} #{outcome.seed}", *said, again])


def _mutants(names: Sequence[str], servers: Servers, seed: int, console: Console) -> Iterator[MutantResult]:
    for result in try_mutants(names, FAULTS, servers, seed):
        console.print(
            f"without {result.mutant}: {'caught, ' if result.caught else 'NOT CAUGHT '}{result.by}", markup=False
        )
        yield result


def _save(mutants: Sequence[MutantResult]) -> None:
    by_fault: dict[str, list[Ran]] = defaultdict(list)
    for ran in noted():
        by_fault[ran.fault].append(ran)
    seeds = [ran.seed for runs in by_fault.values() for ran in runs]
    about = {
        "when": datetime.date.today().isoformat(),
        "cpus": os.cpu_count(),
        "seeds": f"{min(seeds, default=0)} to {max(seeds, default=0)}",
        "harness_errors": sum(ran.error is not None for runs in by_fault.values() for ran in runs),
    }
    save([summed(name, by_fault[name]) for name in FAULTS if name in by_fault], mutants, about)


if __name__ == "__main__":
    sys.exit(main())
