"""Start one server and wait until it answers.

The steps, and what a failure between them leaves: 1. its ports are reserved (freed again); 2. its folder is prepared
(used again by the next start); 3. the process is spawned; 4. it is asked until it answers. A process that does not get
through 4 is killed, so a start that raises leaves nothing running.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local import ports, process
from deploy.local.errors import StartFailed, read_tail
from deploy.local.ports import Reservation
from deploy.local.process import Pid
from deploy.local.server import Server, Site

READY_WITHIN_S = 90.0
"""The slowest start seen takes 15 s with all five at once on two cores; a loaded CI machine may need several times that."""
ASK_EVERY_S = 0.05
ATTEMPTS = 4
"""Losing the race for a port is rare; four in a row are no race."""
PORT_TAKEN = re.compile(r"address (is )?(already )?in use|BindException|BindHttpException|could not bind", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Started:
    """A server that answers, and the ports kept for it."""

    pid: Pid
    reservation: Reservation
    took_s: float


def start(server: Server, folder: Path, log: Path, settings: Mapping[str, str], wanted: Reservation | None) -> Started:
    """Start a server on free ports, or on the `wanted` ones. Raises StartFailed, or what `prepare` raises.

    With `wanted` there is one attempt and the caller keeps the reservation. Without it, a start that fails because
    someone else got the port is repeated with other ports.
    """
    if wanted is not None:
        return _attempt(server, folder, log, settings, wanted)
    for attempt in range(ATTEMPTS):
        reservation = ports.reserve(server.port_count)
        try:
            return _attempt(server, folder, log, settings, reservation)
        except BaseException as error:
            reservation.close()
            lost_race = isinstance(error, StartFailed) and PORT_TAKEN.search(error.log_tail)
            if not lost_race or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _attempt(
    server: Server, folder: Path, log: Path, settings: Mapping[str, str], reservation: Reservation
) -> Started:
    folder.mkdir(parents=True, exist_ok=True)
    launch = server.prepare(Site(folder, reservation.ports, settings))
    began_s = time.monotonic()
    pid = process.spawn(launch, log)
    try:
        _wait(server, pid, reservation.ports[0], log)
    except BaseException:
        process.kill(pid)
        raise
    return Started(pid, reservation, time.monotonic() - began_s)


def _wait(server: Server, pid: Pid, port: int, log: Path) -> None:
    until_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until_s:
        # Asked before the process is looked at: if another program has the port, ours has ended and that is seen.
        answered = server.answers(port)
        if not process.alive(pid):
            raise StartFailed(server.name, "ended before it answered", log)
        if answered:
            return
        time.sleep(ASK_EVERY_S)
    raise StartFailed(server.name, f"did not answer within {READY_WITHIN_S:.0f} s", log)


__all__ = ["READY_WITHIN_S", "Started", "read_tail", "start"]
