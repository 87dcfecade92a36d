"""All benchmarks, one process each, and their results as one page: ``python -m benchmarks [--quick] [NAME ...]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import pictures, results
from benchmarks.machine import spoken
from benchmarks.measuring import say
from benchmarks.running import COLUMNS, cells, unwind_on_sigterm

NAMES: Final = (
    "append",
    "bulk",
    "transaction",
    "startup",
    "relay",
    "delivery",
    "debezium",
    "peer_append",
    "peer_relays",
    "projector",
    "rebuild",
    "rebuild_growth",
    "search",
    "latency",
    "freshness",
    "keeping_up",
    "chain",
    "verify",
    "capture",
    "idle",
    "outbox_size",
    "growth",
)
"""The modules, in the order in which they run."""

TIMEOUT_S: Final = 900
"""For one of them; all together are to take less than half an hour."""


def main() -> int:
    """Run them; the exit code is 1 if one failed. A missed target is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: proves that they run; nothing is written")
    parser.add_argument("--results", type=Path, help="the folder to write to, in any case")
    given = parser.parse_args()
    unwind_on_sigterm()
    passed_on = [*(["--quick"] if given.quick else []), *(["--results", str(given.results)] if given.results else [])]
    failed = [name for name in given.names if not succeeded(name, passed_on)]
    if given.results or not given.quick:
        page(given.results or results.FOLDER)
        pictures.draw(given.results or results.FOLDER, given.results or pictures.FOLDER)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def succeeded(name: str, arguments: list[str]) -> bool:
    """Run one in a process of its own, so that none finds what another has left in memory."""
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with subprocess.Popen(command) as running:
        try:
            code = running.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            say(f"{name} is stopped after {TIMEOUT_S} s")
            return False
        finally:
            running.terminate()  # not killed: it has servers and processes of its own to end
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
