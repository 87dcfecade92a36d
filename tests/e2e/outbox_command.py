"""The installed ``outbox`` command, run as people run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OUTBOX = str(Path(sys.executable).with_name("outbox"))


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's, without settings of its own, and with these."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")} | dict(settings)


def projecting_names(database: str, bootstrap: str, folder: Path, projection: str) -> dict[str, str]:
    """Settings of a projector ``names`` into PostgreSQL, of a projection ``Names`` with this source, over Kafka."""
    (folder / "names.py").write_text(projection)
    return {
        "OUTBOX_MODE": "servers",
        "OUTBOX_PREFIX": f"t{uuid.uuid4().hex[:10]}",
        "OUTBOX_DATABASE__DSN": database,
        "OUTBOX_KAFKA__BOOTSTRAP": bootstrap,
        "OUTBOX_PROJECTORS": json.dumps({"names": {"projection": "names:Names", "store": "postgres"}}),
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }


def outbox(
    *arguments: str, settings: Mapping[str, str], cwd: Path, timeout_s: float = 240, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [OUTBOX, *arguments],
        env=environment(settings),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        input=stdin,
        check=False,
    )


def answer(*arguments: str, settings: Mapping[str, str], cwd: Path) -> Any:
    """Run it with ``--json`` and return what it printed."""
    done = outbox(*arguments, "--json", settings=settings, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def process(*arguments: str, settings: Mapping[str, str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run it in the background; stopped by SIGTERM at the end, which must end it cleanly."""
    log = (cwd / f"{'-'.join(arguments)[:60].replace('/', '_')}.log").open("ab")
    running = subprocess.Popen([OUTBOX, "-v", *arguments], env=environment(settings), cwd=cwd, stdout=log, stderr=log)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0, Path(log.name).read_text("utf-8")[-2_000:]
        log.close()
