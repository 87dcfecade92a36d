"""What a run came to: how long until every store equals the model, and what is wrong at rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.faults import broker, checks, stores
from tests.faults.checks import Violation
from tests.faults.model import LogRow, expected, joined
from tests.faults.run import Run
from tests.faults.until import TooLong

QUIET_S = 0.05
"""Between two looks at the stores, at least."""
SHARE = 4
"""Looking takes one part in so many of the time, no more: who looks all the time slows down what it waits for."""


def require(run: Run, timeout_s: float = 30.0) -> None:
    """In the midst of a fault: with the writers stopped, every store must come to equal the model."""
    wrong, _ = _converged(run, time.monotonic(), timeout_s)
    run.found += wrong


def settle(run: Run) -> tuple[list[Violation], float | None]:
    """Wait until every store equals the model; how long that took after the fault, and what is wrong if it did
    not come to that."""
    ended_at = run.ended_at or time.monotonic()
    run.stop_writers()
    return _converged(run, ended_at, run.plan.bound_s)


def _converged(run: Run, ended_at: float, bound_s: float) -> tuple[list[Violation], float | None]:
    with run.connection() as connection:
        log = checks.log_rows(connection)
    known = run.history()
    if {row.id for row in log} - known.tried.keys():
        return [], None  # told by the check of the log
    model = expected(log, known, poison=run.poisoned)
    deadline, wrong = ended_at + bound_s, [Violation("I6", "not looked at")]
    while wrong and time.monotonic() < deadline:
        began = time.monotonic()
        wrong = [v for kind in run.plan.kinds for v in _compared(run, kind, model)]
        if wrong:
            _check_alive(run)
            time.sleep(max(QUIET_S, (SHARE - 1) * (time.monotonic() - began)))
    if not wrong:
        return [], time.monotonic() - ended_at
    return [Violation("I6", f"not converged {bound_s:.0f} s after the fault"), *wrong], None


def _compared(run: Run, kind: str, model: Mapping[str, Any]) -> list[Violation]:
    try:
        wanted = joined(model) if kind == "nodes" else model
        if not run.plan.ages:
            wanted = {key: replace(one, least=1) for key, one in wanted.items()}
        return list(checks.check_store(kind, stores.READ[kind](run.place(kind)), wanted))
    except Exception as error:  # a store that does not answer now may do so soon: the bound decides
        return [Violation("I6", f"{kind} cannot be read: {' '.join(str(error).split())[:200]}")]


def _check_alive(run: Run) -> None:
    for name, child in run.children.items():
        if name.startswith(("relay", "project")) and name not in run.quiet and not child.alive:
            raise TooLong(f"{name} ended by itself with {child.exit_code}: {run.log(name)}")


def stop(run: Run) -> Iterator[Violation]:
    """End everything by SIGTERM."""
    for name, child in run.children.items():
        if name in run.quiet or name.startswith("writer"):
            child.kill()
            continue
        child.await_heed()
        if (code := child.stop()) != 0:
            yield Violation("I6", f"{name} did not end well on SIGTERM: {code}: {run.log(name)[-300:]}")


def check(run: Run) -> Iterator[Violation]:
    """Everything, at rest."""
    known = run.history()
    with run.connection() as connection:
        log = checks.log_rows(connection)
        business = {id_ for (id_,) in connection.execute("SELECT id::text FROM business")}
        yield from checks.check_log(log, known, business)
        yield from checks.check_audit(connection)
        yield from checks.check_generations(connection)
    yield from _check_broker(run, log)
    if not {row.id for row in log} - known.tried.keys():
        model = expected(log, known, poison=run.poisoned)
        for kind in run.plan.kinds:
            yield from _compared(run, kind, model)


def _check_broker(run: Run, log: Sequence[LogRow]) -> Iterator[Violation]:
    whole, once = run.plan.topic_whole, run.plan.delivery == "exactly_once"
    found = [[m for m in one if m.id not in run.forgotten] for one in broker.read(run.place_of_broker())]
    yield from checks.check_broker(found, log, whole=whole, once=once)
