"""Start one server and wait until it answers.

The steps, and what a failure between them leaves: 1. its ports are reserved (freed again); 2. its folder is prepared
(used again by the next start); 3. the process is spawned; 4. it is asked until it answers. A process that does not get
through 4 is killed, so a start that raises leaves nothing running.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local import ports, process
from deploy.local.errors import StartFailed
from deploy.local.ports import Reservation
from deploy.local.process import Pid
from deploy.local.server import Server, Site

READY_WITHIN_S = 90.0
"""Three times the slowest start seen: Neo4j's, with all five at once on two busy cores."""
ASK_EVERY_S = 0.05
ATTEMPTS = 4
"""Losing the race for a port is rare; four in a row are no race."""
PORT_TAKEN = re.compile(
    r"address (is )?(already )?in use|BindException|BindHttpException|could not bind", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Started:
    """A server that answers, and the ports kept for it."""

    pid: Pid
    reservation: Reservation
    took_s: float


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: the server, its folder and log, the added settings, and whom to tell of each process spawned."""

    server: Server
    folder: Path
    log: Path
    settings: Mapping[str, str]
    spawned: Callable[[Pid], None]


def start(order: Order, wanted: Reservation | None) -> Started:
    """Start a server on free ports, or on the `wanted` ones. Raises StartFailed, or what `prepare` raises.

    With `wanted` there is one attempt and the caller keeps the reservation. Without it, a start that fails because
    someone else got the port is repeated with other ports.
    """
    if wanted is not None:
        return _attempt(order, wanted)
    for left in reversed(range(ATTEMPTS)):
        reservation = ports.reserve(order.server.port_count)
        try:
            return _attempt(order, reservation)
        except BaseException as error:
            reservation.close()
            if not left or not _lost_race(error):
                raise
    raise AssertionError("the last attempt returns or raises")


def _lost_race(error: BaseException) -> bool:
    return isinstance(error, StartFailed) and PORT_TAKEN.search(error.log_tail) is not None


def _attempt(order: Order, reservation: Reservation) -> Started:
    order.folder.mkdir(parents=True, exist_ok=True)
    launch = order.server.prepare(Site(order.folder, reservation.ports, order.settings))
    began_s = time.monotonic()
    pid = process.spawn(launch, order.log)
    try:
        order.spawned(pid)
        _wait(order.server, pid, reservation.ports[0], order.log)
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
