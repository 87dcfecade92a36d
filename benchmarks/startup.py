"""How long people wait for a command that does next to nothing: ``python -m benchmarks.startup``.

Each command is a process of its own, timed from its start to its end, beside ``python -c pass``. Bytecode is cached in
a folder of the benchmark's own, which the warm-up fills: an installed package has it, whatever the environment of this
run says. What is asked:

* with servers: PostgreSQL is real; of the stores, two are addresses of HTTP at which something answers.
* embedded, ``outbox up`` running: that process is asked.
* embedded, nothing running: the command itself starts PostgreSQL, and stops it at the end.

The processor time of each command (without that of the servers it asks or starts) is given too: it changes less with
what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.databases import fresh_database
from benchmarks.measuring import interleaved
from benchmarks.processes import OUTBOX
from benchmarks.results import Result, Target, at_most, beside, rounded
from benchmarks.running import options, run
from deploy.local.resolve import Resolved

EMPTY: Final = "python -c pass"
IMPORT, HELP, SERVERS, UP, COLD = (
    "import outbox",
    "outbox --help",
    "outbox status, servers",
    "outbox status, embedded, up runs",
    "outbox status, embedded, nothing runs",
)
TARGETS: Final[Mapping[str, Target]] = {
    IMPORT: at_most(150),
    HELP: at_most(300),
    SERVERS: at_most(700),
    UP: at_most(700),
    COLD: at_most(700),
}
"""In milliseconds of wall time."""
TIMEOUT_S: Final = 120

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Command:
    """What is run, and with which settings; ``cpu_ms`` gets its processor time, run by run."""

    arguments: list[str]
    environment: Environment
    folder: Path
    cpu_ms: list[float]

    def run(self) -> float:
        """Milliseconds from start to end. Raises RuntimeError if it fails."""
        began = time.perf_counter()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.arguments, env=dict(self.environment), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=said
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            elapsed = time.perf_counter() - began
            if process.returncode:
                said.seek(0)
                raise RuntimeError(f"{' '.join(self.arguments)} failed: {said.read().decode().strip()}")
        self.cpu_ms.append((used.ru_utime + used.ru_stime) * 1_000)
        return elapsed * 1_000


def measure(servers: Resolved, given: argparse.Namespace) -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = stack.enter_context(fresh_database(servers.address("postgres")))
        commands = ready(folder, dsn, stack)
        wanted = {name: target for name, target in TARGETS.items() if given.only in name}
        turns = {name: partial(several, commands[name].run, given.runs) for name in (EMPTY, *wanted)}
        taken = interleaved(turns, given.rounds)
        for name, target in wanted.items():
            said = f"{EMPTY} took {rounded(median(taken[EMPTY]))} ms beside it"
            yield Result(name, "ms", {"ours": taken[name]}, target, said)
            cpu = {who: commands[who].cpu_ms[given.runs :] for who in (name, EMPTY)}  # the first were the warm-up's
            yield beside(f"{name}: processor time", cpu, (name, EMPTY), "ms")


def several(turn: Callable[[], float], runs: int) -> float:
    """The median of some runs in a row: one command takes less time than a noisy neighbour's slice."""
    return median(turn() for _ in range(runs))


def ready(folder: Path, dsn: str, stack: ExitStack) -> dict[str, Command]:
    """The commands, by question, and the empty program."""
    bare = environment(folder)
    address = stack.enter_context(answering())
    stores = {"OUTBOX_STORES__CHROMA__URL": address, "OUTBOX_STORES__ELASTICSEARCH__URL": address}
    on_servers = {**bare, **stores, "OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": dsn}
    cold = {**bare, "OUTBOX_DATA_DIR": str(folder / "cold")}
    up = {**bare, "OUTBOX_DATA_DIR": str(folder / "up")}
    subprocess.run([OUTBOX, "migrate"], env=cold, cwd=folder, check=True, timeout=TIMEOUT_S, capture_output=True)
    stack.enter_context(running(up, folder))
    status = [OUTBOX, "status"]
    return {
        EMPTY: Command([sys.executable, "-c", "pass"], bare, folder, []),
        IMPORT: Command([sys.executable, "-c", "import outbox"], bare, folder, []),
        HELP: Command([OUTBOX, "--help"], bare, folder, []),
        SERVERS: Command(status, on_servers, folder, []),
        UP: Command(status, up, folder, []),
        COLD: Command(status, cold, folder, []),
    }


def environment(folder: Path) -> dict[str, str]:
    """This process's without settings of its own, and with a cache of bytecode."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_") and k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


@contextmanager
def running(settings: Environment, folder: Path) -> Iterator[None]:
    """``outbox up``, once it answers."""
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen([OUTBOX, "up"], env=dict(settings), cwd=folder, stdout=log, stderr=log)
    try:
        until_up(process, folder / "up.log")
        yield
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def until_up(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while "up; Ctrl-C" not in log.read_text("utf-8"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"outbox up does not come up: {log.read_text('utf-8').strip()}")
        time.sleep(0.05)


@contextmanager
def answering() -> Iterator[str]:
    """The URL of something that answers every GET, as a store's server does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Answer(BaseHTTPRequestHandler):
    """Says 200 and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each command, in one turn")
    given = parser.parse_args()
    if given.quick:
        given.runs = 1
    run("startup", ["postgres"], measure, given)


if __name__ == "__main__":
    main()
