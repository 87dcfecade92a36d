"""Ports that nobody else is given while we need them.

The system picks a free port when a socket is bound to port 0. Closing that socket and passing the number on leaves a
gap: before the server binds it, or while it is down in a fault test, the system may hand the same number to another
listener, or to a client as the near end of its connection (a client that retries a dead loopback port can even end up
connected to itself). So the bound socket is kept for as long as its service is ours. It never listens, and on Linux
SO_REUSEADDR lets the server bind the same number beside it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Some ports of the loopback interface, and the sockets that keep them."""

    ports: tuple[int, ...]
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Give the ports back to the system. May be called twice."""
        for held in self.sockets:
            held.close()


def reserve(count: int) -> Reservation:
    """Take `count` free ports, all different."""
    return reserve_these([0] * count)


def reserve_these(ports: Sequence[int]) -> Reservation:
    """Take these very ports (0: any). Raises OSError if one is in use."""
    with ExitStack() as undo:
        held = [undo.enter_context(_bound(port)) for port in ports]
        numbers = tuple(one.getsockname()[1] for one in held)
        if sys.platform == "linux":
            undo.pop_all()
        # Elsewhere two sockets cannot share a number: the gap stays, and a start that loses the race is repeated.
        return Reservation(numbers, tuple(held))


def _bound(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((HOST, port))
    except OSError:
        one.close()
        raise
    return one
