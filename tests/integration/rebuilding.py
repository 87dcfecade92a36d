"""A process that rebuilds, for tests that kill it or measure it. Its argument is JSON: settings, point.

At the named point it kills itself as the kernel would; without one it prints its peak memory in bytes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from outbox.settings import load
from projectors import ledger, loading, operations, rebuild, verify
from projectors.session import Session
from projectors.sinks.postgres import PostgresSink
from projectors.wiring import open_read_side
from tests.integration.reading import Parts, Stage


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, times: int = 1) -> None:
    """Die instead of the call of that number."""
    left = [times]
    kept: Callable[..., Any] = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        return kept(*args, **kwargs) if left[0] else die()

    setattr(owner, name, counted)


def after(owner: Any, name: str) -> None:
    """Die when the first call has returned."""
    kept: Callable[..., Any] = getattr(owner, name)

    def ended(*args: Any, **kwargs: Any) -> None:
        kept(*args, **kwargs)
        die()

    setattr(owner, name, ended)


POINTS: dict[str, Callable[[], None]] = {
    "before it is written down": lambda: before(ledger, "begin_generation"),
    "when it is written down": lambda: after(ledger, "begin_generation"),
    "before the store is prepared": lambda: before(PostgresSink, "prepare"),
    "in the load, before a batch": lambda: before(PostgresSink, "apply", 2),
    "in the load, before its progress is noted": lambda: before(ledger, "note_progress", 2),
    "when it is loaded": lambda: before(rebuild, "CatchingUp"),
    "in the catch-up, before an apply": lambda: before(Session, "step"),
    "in the catch-up, before the checkpoint": lambda: before(ledger, "save_checkpoints"),
    "in the verification": lambda: before(verify.Verifier, "_suspects"),
    "before the store's alias is switched": lambda: before(PostgresSink, "switch"),
    "between the store's alias and the row that rules": lambda: before(ledger, "switch_generation"),
    "when it is switched": lambda: after(ledger, "switch_generation"),
}


def command(stage: Stage, point: str | None = None) -> list[str]:
    """What starts such a process on the log and the store of a stage."""
    settings = stage.side.settings.model_dump(mode="json", exclude_defaults=True)
    return [sys.executable, "-m", "tests.integration.rebuilding", json.dumps({"settings": settings, "point": point})]


def main() -> None:
    told = json.loads(sys.argv[1])
    if told["point"]:
        loading.LOAD_BATCH = 50  # so that a load has several batches
        POINTS[told["point"]]()
    with open_read_side(load(**told["settings"]), {"parts": Parts()}) as side:
        operations.rebuild(side, projector="rows")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main()
