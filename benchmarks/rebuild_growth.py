"""Does a rebuild stay as fast, and as small, as the log grows? ``python -m benchmarks.rebuild_growth [--sizes N ...]``

Each size is a log of its own, ten events a stream, rebuilt by a process that does nothing else; its rate and the most
memory it had stand beside those at the smallest size. The store is PostgreSQL, the cheapest: our own part shows.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import interleaved
from benchmarks.projecting import PROJECTOR, Feed, chosen, feed, opened
from benchmarks.rebuild import HISTORY
from benchmarks.results import Result, at_least, at_most
from benchmarks.running import options, run
from deploy.local.resolve import Resolved
from outbox.settings import load
from projectors.rebuild import rebuild

SIZES: Final = (10_000, 30_000, 100_000)
GROWN: Final = "postgres"
WITHIN: Final = 0.2


def growth(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    """Rate and memory at each size beside those at the smallest."""
    (place,) = chosen([GROWN])
    peaks: dict[str, list[float]] = {f"{events:,}": [] for events in given.sizes}
    with ExitStack() as stack:
        turns = {}
        for events in given.sizes:
            one = stack.enter_context(feed(servers, place))
            one.append(events // HISTORY, range(1, HISTORY + 1))
            turns[f"{events:,}"] = partial(grown, one, events, peaks[f"{events:,}"])
        rates = interleaved(turns, given.rounds, warm_up=0)
    least, *others = peaks
    for size in others:
        question = f"rebuild of {size} events beside one of {least}"
        names = {"ours": size, f"{least} events": least}
        samples = {name: rates[key] for name, key in names.items()}
        yield Result(f"{question}: rate", "events/s", samples, at_least(1 - WITHIN), f"{GROWN}; ten events a stream")
        samples = {name: peaks[key] for name, key in names.items()}
        yield Result(f"{question}: memory", "MiB", samples, at_most(1 + WITHIN), "peak of the process")


def grown(one: Feed, events: int, peaks: list[float]) -> float:
    """The rate of a rebuild in a new process; its peak memory goes to ``peaks``."""
    settings = one.side.settings.model_dump(mode="json")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        seconds, peak_mib = process.submit(alone, settings).result()
    peaks.append(peak_mib)
    return events / seconds


def alone(settings: dict[str, Any]) -> tuple[float, float]:
    """Rebuild, and return the seconds it took and this process's peak memory in MiB."""
    with opened(load(**settings)) as side:
        seconds = rebuild(side.plan(PROJECTOR), side.stations(PROJECTOR)).seconds
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return seconds, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = options(__doc__)
    shown = " ".join(map(str, SIZES))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"events, the smallest first ({shown})")
    given = parser.parse_args()
    if given.quick:
        given.sizes = (100, 200)
    run("rebuild_growth", ["postgres"], growth, given)


if __name__ == "__main__":
    main()
