"""Taking turns: every contender once a round, in another order each time, so that a noisy machine is noisy for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

Turn = Callable[[], float]
"""One contender's turn; returns its figure."""


def interleaved(contenders: Mapping[str, Turn], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """The figures of each contender, round by round; the first ``warm_up`` rounds are not kept."""
    names = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            figure = contenders[name]()
            say(f"  {'warm-up' if turn < warm_up else f'round {turn - warm_up + 1}'} {name}: {figure:,.4g}")
            if turn >= warm_up:
                figures[name].append(figure)
    return figures


def say(line: str) -> None:
    """Progress, on standard error: standard output is for the results."""
    print(line, file=sys.stderr, flush=True)
