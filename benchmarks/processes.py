"""The product's own processes, as a user starts them, beside a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil

STOPPED_WITHIN_S: Final = 30.0
OUTBOX: Final = str(Path(sys.executable).with_name("outbox"))


@contextmanager
def process(environment: Mapping[str, str], folder: Path, *arguments: str) -> Iterator[psutil.Process]:
    """``outbox ARGUMENTS``, ended with the block."""
    with _log(folder, arguments).open("wb") as log:
        started = subprocess.Popen([OUTBOX, *arguments], env=dict(environment), stdout=log, stderr=log)
        try:
            yield psutil.Process(started.pid)
        finally:
            started.terminate()
            started.wait(STOPPED_WITHIN_S)


@contextmanager
def processes(settings: Mapping[str, str], commands: Sequence[Sequence[str]]) -> Iterator[list[psutil.Process]]:
    """``outbox COMMAND`` for each, with these settings in the environment, until the end of the block.

    Raises RuntimeError with what it said if one has ended by itself.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        environment, folder = {**os.environ, **settings}, Path(name)
        started = [stack.enter_context(process(environment, folder, *command)) for command in commands]
        try:
            yield started
        except Exception as error:
            _check(started, commands, folder, error)
            raise
        _check(started, commands, folder)


def _check(
    started: Sequence[psutil.Process],
    commands: Sequence[Sequence[str]],
    folder: Path,
    error: Exception | None = None,
) -> None:
    """Raise if one has ended by itself, which is then why the block has failed, if it has."""
    for one, command in zip(started, commands, strict=True):
        if one.status() == psutil.STATUS_ZOMBIE:
            said = _log(folder, command).read_text("utf-8")
            raise RuntimeError(f"outbox {' '.join(command)} ended: {said[-500:]}") from error


def _log(folder: Path, arguments: Sequence[str]) -> Path:
    return folder / f"{'-'.join(arguments)}.log"
