"""What one kind of server must tell so that it can be started, watched and stopped."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.local.process import Launch


@dataclass(frozen=True, slots=True)
class Site:
    """Where one server lives: its folder, its ports and the settings someone added (in the server's own words)."""

    folder: Path
    ports: tuple[int, ...]
    settings: Mapping[str, str]

    @property
    def port(self) -> int:
        """The port that clients use."""
        return self.ports[0]


class Server(Protocol):
    """One kind of server. Implementations hold no state: everything that lasts is in the site's folder."""

    @property
    def name(self) -> str:
        """The word for it on the command line."""

    @property
    def port_count(self) -> int:
        """How many ports it listens on."""

    @property
    def stop_signal(self) -> signal.Signals:
        """The signal that makes it end in good order."""

    def address(self, port: int) -> str:
        """Return what a client needs to connect: a DSN, a URL or host:port."""

    def prepare(self, site: Site) -> Launch:
        """Fetch, configure and (once) initialize the server; return how to start it. May be called again."""

    def answers(self, port: int) -> bool:
        """Tell whether it serves clients now."""
