"""The ``outbox`` command as the tests run it: the product's own entry point, with points and sabotage in place first."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import clock, mutants, points


def command(arguments: Sequence[str], settings: Mapping[str, str], log: str) -> None:
    """Run ``outbox ARGUMENTS`` in this process; its output goes to ``log``."""
    _prepare(settings, log)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["outbox", *arguments]
    from outbox.cli.main import main

    main()


def writer(assignment: object, settings: Mapping[str, str], log: str) -> None:
    """Run a writer in this process."""
    _prepare(settings, log)
    from tests.faults.writer import write

    write(assignment)  # type: ignore[arg-type]


def _prepare(settings: Mapping[str, str], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1)  # asked where it stands, when a run waits for it in vain
    os.chdir(Path(log).parent)
    for name in [n for n in os.environ if n.startswith("OUTBOX_")]:
        del os.environ[name]
    os.environ.update(settings)
    clock.arm(os.environ)
    mutants.arm(os.environ)
    points.arm(os.environ)
