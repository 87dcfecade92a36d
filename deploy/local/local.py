"""`Local`: the servers of one home folder, started, stopped and broken at will."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local import archive, ports, process, state
from deploy.local.errors import LocalError, NotRunning
from deploy.local.guard import Guard
from deploy.local.jars import locked
from deploy.local.ports import Reservation
from deploy.local.servers import SERVERS, known, variable
from deploy.local.service import Service
from deploy.local.start import Order, start

STOP_WITHIN_S = 20.0
"""Neo4j's and Elasticsearch's last checkpoint after heavy writing takes a few seconds; past this it is a hang."""

Settings = Mapping[str, Mapping[str, str]]


class Local:
    """Real servers in one folder.

    ::

        with Local() as local:
            local.start("postgres", "kafka")
            connect(local["postgres"].address)

    Without `home` the folder is a temporary one, deleted at the end; a given one is kept with its data, and a later
    `Local` of the same home goes on from there. `settings` adds to a server's own configuration, by service:
    `{"postgres": {"fsync": "off"}}`.

    Closing ends every service of the home. Should this process die without closing, a guard process ends them instead;
    `detached=True` leaves them running for good (the command line's `up`): those that are in the record. One that was
    being started when we died is in none, so that nobody would find it: the guard ends it.
    """

    def __init__(self, home: Path | None = None, *, settings: Settings | None = None, detached: bool = False) -> None:
        self._temporary = home is None
        self._closed = False
        self.home = (home or Path(tempfile.mkdtemp(prefix="outbox-local-"))).absolute()
        self.home.mkdir(parents=True, exist_ok=True)
        self._settings = dict(settings or {})
        known(self._settings)
        self._reservations: dict[str, Reservation] = {}
        self._detached = detached
        self._guard = Guard()
        self._services = {service.name: service for service in state.read(self.home, self)}

    @property
    def services(self) -> Mapping[str, Service]:
        """The services of this home, by name, running or not."""
        return dict(self._services)

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each service, by the name of the environment variable that tests read it from."""
        return {variable(name): service.address for name, service in self._services.items()}

    def __getitem__(self, name: str) -> Service:
        """Return a service that was started here. Raises NotRunning if it never was."""
        known([name])
        if name not in self._services:
            raise NotRunning(f"{name} was not started in {self.home}")
        return self._services[name]

    def start(self, *names: str) -> tuple[Service, ...]:
        """Start services side by side and return them once all answer; one that runs already is left as it is.

        Data from an earlier start in this home is used again. If one cannot start, those started by this call are
        ended again and its error is raised: MissingTool, DownloadFailed, StartFailed or another LocalError.
        """
        chosen = known(names)
        with self._changing():
            absent = [name for name in chosen if name not in self._services or not self._services[name].alive]
            if absent:
                self._start_together(absent)
        return tuple(self._services[name] for name in chosen)

    def stop(self, *names: str) -> None:
        """End services in good order (all of them if none is named), by force after STOP_WITHIN_S."""
        with self._changing():
            running = [self[name] for name in known(names) or self._services]
            if running:
                with ThreadPoolExecutor(len(running)) as pool:
                    list(pool.map(_end, running))

    def kill(self, name: str) -> None:
        """Crash a service: SIGKILL to it and its children. Its data and its port stay for `restart`."""
        process.kill(self[name].process)

    def pause(self, name: str) -> None:
        """Freeze a service: its connections stay open and nothing answers."""
        process.pause(self[name].process)

    def resume(self, name: str) -> None:
        """Let a paused service go on."""
        process.resume(self[name].process)

    def restart(self, name: str) -> Service:
        """Stop a service if it runs and start it again on the same port and data."""
        service = self[name]
        with self._changing():
            _end(service)
            if name not in self._reservations:  # started by another process, which took its reservation along
                self._reservations[name] = _same_ports(service)
            self._start_one(name)
        return self._services[name]

    def close(self) -> None:
        """End every service; delete the home if it is a temporary one. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        self._guard.close()
        for reservation in self._reservations.values():
            reservation.close()
        self._reservations.clear()
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other processes from changing this home at the same time; write the record at the end, come what may."""
        with locked(self.home / "lock"):
            try:
                yield
            finally:
                state.write(self.home, self._services.values())
            if self._detached:
                self._guard.release()

    def _start_together(self, names: list[str]) -> None:
        try:
            with ThreadPoolExecutor(len(names)) as pool:  # leaving the block waits for all, even if one has failed
                list(pool.map(self._start_one, names))
        except BaseException:
            for name in names:
                if name in self._services:
                    _end(self._services[name])
            raise

    def _start_one(self, name: str) -> None:
        self._guard.begin()
        folder, log = self.home / name, state.log_of(self.home, name)
        order = Order(SERVERS[name], folder, log, self._settings.get(name, {}), self._guard.watch)
        started = start(order, self._reservations.get(name))
        self._reservations[name] = started.reservation
        self._services[name] = Service(
            name=name,
            address=order.server.address(started.reservation.ports[0]),
            pid=started.pid.number,
            born_s=started.pid.born_s,
            ports=started.reservation.ports,
            home=folder,
            log=log,
            started_s=started.took_s,
            owner=self,
        )


def _end(service: Service) -> None:
    if service.alive and process.stop(service.process, SERVERS[service.name].stop_signal, STOP_WITHIN_S):
        archive.collect(service.home)


def _same_ports(service: Service) -> Reservation:
    try:
        return ports.reserve_these(service.ports)
    except OSError as error:
        raise LocalError(f"{service.name} cannot have its port {service.ports[0]} again: {error.strerror}") from error
