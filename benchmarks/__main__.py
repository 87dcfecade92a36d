"""All benchmarks, one process each, and their results as one page: ``python -m benchmarks [--quick] [NAME ...]``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import pictures, results
from benchmarks.machine import spoken
from benchmarks.measuring import say
from benchmarks.running import COLUMNS, cells, unwind_on_sigterm
from deploy.local import process
from deploy.local.resolve import resolve

_LOG: Final = ("postgres",)
_RELAY: Final = ("postgres", "kafka")
_STORES: Final = ("postgres", "chroma", "neo4j", "elasticsearch")
_ALL: Final = (*_STORES, "kafka")
BENCHMARKS: Final[Mapping[str, Sequence[str]]] = {
    "append": _LOG,
    "bulk": _LOG,
    "transaction": _LOG,
    "startup": _LOG,
    "relay": _RELAY,
    "delivery": _RELAY,
    "debezium": _RELAY,
    "peer_append": _LOG,
    "peer_relays": _RELAY,
    "latency": _RELAY,
    "projector": _STORES,
    "rebuild": _STORES,
    "rebuild_growth": _LOG,
    "search": _STORES,
    "freshness": _ALL,
    "keeping_up": ("postgres", "kafka", "elasticsearch"),
    "chain": _ALL,
    "verify": _STORES,
    "capture": _LOG,
    "idle": _LOG,
    "outbox_size": _RELAY,
    "growth": _RELAY,
}
"""The modules, in the order in which they run, and the servers that each is to find. They are started once, when the
first asks for them: by itself each would wait half a minute for its own, which then have yet to warm up."""
WHEN_NAMED: Final = ("verify", "capture")
"""These run when they are named; no aim of speed is stated for them."""

USUAL: Final = [name for name in BENCHMARKS if name not in WHEN_NAMED]

TIMEOUT_S: Final = 600
"""For one of them; all together are to take less than half an hour."""
UNWIND_S: Final = 30.0
"""For one that is told to end; it has processes of its own to end."""


def main() -> int:
    """Run them; the exit code is 1 if one failed. A missed target is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=USUAL, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: proves that they run; nothing is written")
    parser.add_argument("--results", type=Path, help="the folder to write to, in any case")
    given = parser.parse_args()
    unwind_on_sigterm()
    passed_on = [*(["--quick"] if given.quick else []), *(["--results", str(given.results)] if given.results else [])]
    began = time.monotonic()
    with ExitStack() as servers:
        failed = [name for name in given.names if not succeeded(name, passed_on, servers)]
    say(f"all took {time.monotonic() - began:.0f} s")
    if given.results or not given.quick:
        page(given.results or results.FOLDER)
        pictures.draw(given.results or results.FOLDER, given.results or pictures.FOLDER)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def succeeded(name: str, arguments: Sequence[str], servers: ExitStack) -> bool:
    """Run one in a process of its own, so that none finds what another has left in memory.

    The servers that it needs and that are not there yet are started; they go when ``servers`` closes.
    """
    found = servers.enter_context(resolve(BENCHMARKS.get(name, ())))
    os.environ.update(found.addresses)
    began = time.monotonic()
    running = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}", *arguments])
    pid = process.Pid.of(running.pid)
    try:
        code = running.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        say(f"{name} is stopped after {TIMEOUT_S} s")
        return False
    finally:
        if running.poll() is None:
            process.stop(pid, signal.SIGTERM, UNWIND_S)
    say(f"{name} took {time.monotonic() - began:.0f} s")
    return code == 0


def page(folder: Path) -> None:
    """Write README.md: a table of each file of results in the folder."""
    parts = ["# Results\n\nWritten by `make bench`; how each is measured is said in `benchmarks/NAME.py`.\n"]
    for path in sorted(folder.glob("*.json")):
        documents = results.read(path)
        rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(cells(document) for document in documents)]
        table = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)
        notes = "".join(f"\n* {document['question']}: {document['note']}" for document in documents if document["note"])
        parts.append(f"## {path.stem}\n\n{table}\n{notes}\n\n{spoken(documents[0]) if documents else ''}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join(parts), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
