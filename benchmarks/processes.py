"""The product's own processes, as a user starts them, beside a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

STOP_WITHIN_S: Final = 30
OUTBOX: Final = str(Path(sys.executable).with_name("outbox"))


@contextmanager
def processes(settings: Mapping[str, str], commands: Sequence[Sequence[str]]) -> Iterator[None]:
    """``outbox COMMAND`` for each, with these settings in the environment, until the end of the block.

    Raises RuntimeError with what it said if one has ended by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"{number}.log" for number in range(len(commands))]
        started = [_start(log, settings, command) for log, command in zip(logs, commands, strict=True)]
        try:
            yield
            for process, log, command in zip(started, logs, commands, strict=True):
                if process.poll() is not None:
                    raise RuntimeError(f"outbox {' '.join(command)} ended: {log.read_text('utf-8')[-500:]}")
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(STOP_WITHIN_S)


def _start(log: Path, settings: Mapping[str, str], command: Sequence[str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([OUTBOX, *command], env={**os.environ, **settings}, stdout=file, stderr=file)
