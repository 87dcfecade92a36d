"""Run one preparing command of a server to its end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.process import identity


def run_step(what: str, command: Sequence[str], *, folder: Path, timeout_s: float, user: str | None = None) -> None:
    """Run a command and wait for it. Raises LocalError, which quotes its first error, if it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False, **identity(user)
        )
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{what} did not end within {timeout_s:.0f} s") from error
    except OSError as error:
        raise LocalError(f"{what} could not be run: {error}") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1])  # what follows it is clearing up
        raise LocalError(f"{what} failed: {reason.strip()[:400]}")
