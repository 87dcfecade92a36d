"""Find servers for a test run: given ones, containers, or servers started here, whichever comes first.

1. An environment variable (`OUTBOX_TEST_POSTGRES`, `…_KAFKA`, `…_NEO4J`, `…_ELASTICSEARCH`, `…_CHROMA`) names a server
   that runs already. It is used as it is and left as it is.
2. A Docker engine that answers runs the pinned images.
3. Otherwise they are started on this machine without Docker.

The choice is made for each service by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from deploy.local import containers
from deploy.local.errors import DownloadFailed, MissingTool, ServersUnavailable
from deploy.local.local import Local, Settings
from deploy.local.servers import known, variable


class Source(StrEnum):
    """Where a server comes from."""

    ENVIRONMENT = "environment"
    DOCKER = "docker"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Servers to use. `local` holds those started here (to crash or pause them in a test), if there are any."""

    addresses: Mapping[str, str]
    """The address of each service, by environment variable."""
    sources: Mapping[str, Source]
    """Where each comes from, by service."""
    local: Local | None

    def address(self, service: str) -> str:
        """Return the address of a service that was asked for."""
        return self.addresses[variable(service)]


@contextmanager
def resolve(
    services: Iterable[str], *, home: Path | None = None, settings: Settings | None = None
) -> Iterator[Resolved]:
    """Have these services until the block ends, which ends those that were started for it.

    `home` and `settings` are for servers started without Docker; see `Local`. Raises ServersUnavailable if there is no
    way to have them, StartFailed if one is there but does not start.
    """
    names = known(services)
    with ExitStack() as stack:
        given = {name: address for name in names if (address := os.environ.get(variable(name)))}
        missing = tuple(name for name in names if name not in given)
        found = {name: (address, Source.ENVIRONMENT) for name, address in given.items()}
        local = None
        if missing and containers.engine_answers():
            started = containers.run(missing, stack)
            found |= {name: (address, Source.DOCKER) for name, address in started.items()}
        elif missing:
            local = _start_here(missing, home, settings, stack)
            found |= {name: (local[name].address, Source.LOCAL) for name in missing}
        yield Resolved(
            addresses={variable(name): found[name][0] for name in names},
            sources={name: found[name][1] for name in names},
            local=local,
        )


def _start_here(names: tuple[str, ...], home: Path | None, settings: Settings | None, stack: ExitStack) -> Local:
    local = stack.enter_context(Local(home, settings=settings))
    try:
        local.start(*names)
    except (MissingTool, DownloadFailed) as error:
        variables = ", ".join(map(variable, names))
        raise ServersUnavailable(f"no servers to test with: set {variables}, start Docker, or: {error}") from error
    return local
