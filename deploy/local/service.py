"""A server that was started: what it is, where it is, and what can be done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from deploy.local import process
from deploy.local.process import Pid


class Owner(Protocol):
    """Whoever keeps the record of the running services; see `Local`."""

    def stop(self, *names: str) -> None:
        """End services in good order."""

    def kill(self, name: str) -> None:
        """Crash a service."""

    def pause(self, name: str) -> None:
        """Freeze a service."""

    def resume(self, name: str) -> None:
        """Let a frozen service go on."""

    def restart(self, name: str) -> Service:
        """Start a service again on its port and data."""


@dataclass(frozen=True, slots=True)
class Service:
    """One start of one server.

    `home` is the server's own folder, `started_s` how long it took to answer. A restart makes a new Service with a new
    `pid`; `address`, `home` and `log` stay the same, so clients need not be told.
    """

    name: str
    address: str
    pid: int
    born_s: float
    ports: tuple[int, ...]
    home: Path
    log: Path
    started_s: float
    owner: Owner = field(repr=False, compare=False)

    @property
    def process(self) -> Pid:
        """The process, safe against reuse of its number."""
        return Pid(self.pid, self.born_s)

    @property
    def alive(self) -> bool:
        """Whether the process of this very start still runs."""
        return process.alive(self.process)

    @property
    def resident_bytes(self) -> int:
        """Its memory now, its child processes included; 0 once it has ended."""
        return process.resident_bytes(self.process)

    def stop(self) -> None:
        """End it in good order, or by force if it does not end within the bound."""
        self.owner.stop(self.name)

    def kill(self) -> None:
        """Crash it: SIGKILL to it and its children. Its data and its port stay."""
        self.owner.kill(self.name)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self.owner.pause(self.name)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self.owner.resume(self.name)

    def restart(self) -> Service:
        """Stop it if it runs, start it again on the same port and data, and return the new start."""
        return self.owner.restart(self.name)
