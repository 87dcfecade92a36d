"""One run: a database of its own, real processes, writers, one fault, and the checks when it is over.

1. The fault's function is called with a :class:`Run`: it starts what it wants, hurts it, and returns once the last
   hurt is over. What it starts with a point armed may end by itself.
2. The writers are stopped in good order; what they know is in their histories.
3. From the fault's end on, the stores are read until they equal the model: that is the recovery. Past the bound it is
   a violation (I6).
4. Every process is stopped by SIGTERM and must end with 0, in good time.
5. Everything is checked at rest.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults import judging
from tests.faults.checks import Violation
from tests.faults.mutants import sabotage
from tests.faults.plan import Outcome, Plan
from tests.faults.run import Run
from tests.faults.servers import Servers
from tests.faults.until import TooLong


def perform(plan: Plan, servers: Servers, seed: int, mutant: str | None = None) -> Outcome:
    """One whole run."""
    began = time.monotonic()
    with ExitStack() as stack:
        dsn = servers.new_database()
        stack.callback(servers.drop_database, dsn)
        if plan.alone:
            stack.callback(servers.revive)
        folder = servers.home / f"{plan.name.replace(' ', '-').replace(':', '').replace('/', '-')}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        # The embedded mode's commands look for this folder, even where a DSN says that PostgreSQL is elsewhere.
        (folder / "data" / "postgres").mkdir(parents=True)
        run = Run(plan, servers, seed, folder, dsn, stack, mutant)
        error, recovery_s = None, None
        found: list[Violation] = []
        try:
            if mutant is not None:
                with run.connection() as connection:
                    sabotage(connection, mutant)
            plan.inject(run)
            found, recovery_s = judging.settle(run)
            found += [*judging.stop(run), *judging.check(run)]
            found += run.found
        except TooLong as late:
            found += [*run.found, Violation("I6", f"{late}")]
            run.note_standstill()
        except Exception as failure:  # of the harness: told apart from a violation, and never passed over
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:600]}"
        finally:
            for child in run.children.values():
                child.kill()
        events = sum(len(path.read_text("utf-8").splitlines()) for path in run.histories)
    distinct = tuple(dict.fromkeys(found))
    kept = None
    if distinct or error is not None:
        kept = Path(tempfile.mkdtemp(prefix="outbox-fault-")) / folder.name
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("data", "disk"))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(plan.name, seed, distinct, recovery_s, time.monotonic() - began, events, kept, error)
