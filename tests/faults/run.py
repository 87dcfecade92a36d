"""What a fault's function has in its hands: a run's processes and writers."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from outbox.codec import Registry
from outbox.event import NewEvent
from outbox.log.append import append
from tests.faults import history, launch
from tests.faults.checks import Violation
from tests.faults.history import Recorder, Tried
from tests.faults.mutants import MUTANT
from tests.faults.points import MARK, ORDER
from tests.faults.processes import Child, begin
from tests.faults.sight import Sight
from tests.faults.until import PATIENCE_S, until
from tests.faults.writer import Assignment


@dataclass
class Run(Sight):
    """Processes by name, started with the run's settings; whatever they do to the stores is judged at its end."""

    children: dict[str, Child] = field(default_factory=dict)
    recipes: dict[str, tuple[tuple[str, ...], dict[str, str]]] = field(default_factory=dict)
    histories: list[Path] = field(default_factory=list)
    ended_at: float | None = None
    quiet: set[str] = field(default_factory=set)
    """Names of processes whose end is not judged: they were meant to be killed, or to fail."""
    found: list[Violation] = field(default_factory=list)
    """What the fault itself saw go wrong."""
    forgotten: set[str] = field(default_factory=set)
    """Ids of events that the log had and was made to lose: nothing more is asked of them."""
    poisoned: bool = False
    """Streams are expected to stand still before an event that cannot be folded."""

    @property
    def quietly(self) -> bool:
        """Whether nothing is to be written any more once the hurt is done, as is every second time: then no later
        event mends what the fault has left."""
        return self.seed % 2 == 1

    @property
    def source(self) -> random.Random:
        """The fault's own choices; the same ones for the same seed."""
        return self._source

    def __post_init__(self) -> None:
        super().__post_init__()
        self._source = random.Random(self.seed * 7919 + 1)
        self.poisoned = self.plan.poison

    def begin(self, *, relay: str | None = None, project: str | None = None, writers: str | None = None) -> None:
        """Relay, projector and two writers, past the projector's first build; each with an order for a point or none."""
        self.command("relay", "relay", point=relay)
        self.command("project", "project", point=project)
        until(lambda: self.serving(), "the first build")
        self.write(2, point=writers)

    def command(self, name: str, *arguments: str, point: str | None = None, **more: str) -> Child:
        """Start ``outbox ARGUMENTS`` as the process ``name``; ``relay…`` and ``project…`` know their edges by name."""
        settings = self.settings("relay" if name.startswith("relay") else "project") | more
        self.recipes[name] = (arguments, settings)
        return self._start(name, point)

    def again(self, name: str, point: str | None = None, **more: str) -> Child:
        """Start a process anew, as its supervisor would; without an order for a point unless one is given."""
        arguments, settings = self.recipes[name]
        self.recipes[name] = (arguments, settings | more)
        self.quiet.discard(name)
        return self._start(name, point)

    def write(self, count: int = 2, point: str | None = None, jump: Mapping[str, str] | None = None) -> None:
        """Start writers; the first has the order for a point. ``jump``: of their clocks."""
        for number in range(count):
            name = f"writer{len(self.histories)}"
            path = self.folder / f"{name}.history"
            path.touch()
            self.histories.append(path)
            assignment = Assignment(self._dsn_of("write"), self.seed * 100 + len(self.histories), str(path))
            settings = self._private(name, point if number == 0 else None) | dict(jump or {})
            self.children[name] = begin(name, launch.writer, assignment, settings, str(self.folder / f"{name}.log"))

    def kill(self, name: str) -> None:
        self.children[name].kill()
        self.quiet.add(name)

    def died(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the process has met its point, which kills it."""
        code = self.children[name].await_end(timeout_s)
        if code is None or code >= 0:
            raise RuntimeError(f"{name} ended by itself with {code}: {self.log(name)}")

    def passed(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a process that was paused at its point has ended the call it was paused in."""
        until(self._mark(name).exists, f"{name} goes on", timeout_s)

    def paused(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the process stands still at its point."""
        self.children[name].await_pause(timeout_s)

    def run_to_end(
        self, name: str, *arguments: str, point: str | None = None, timeout_s: float = PATIENCE_S
    ) -> int | None:
        """Run ``outbox ARGUMENTS`` to its end and return its exit code."""
        code = self.command(name, *arguments, point=point).await_end(timeout_s)
        self.quiet.add(name)
        return code

    def must(self, *arguments: str) -> None:
        """Run ``outbox ARGUMENTS``; that it fails is a violation."""
        code = self.run_to_end(arguments[0], *arguments)
        if code != 0:
            self.found.append(
                Violation("I6", f"outbox {' '.join(arguments)} ended with {code}: {self.log(arguments[0])}")
            )

    def append(self, stream: str, type_: str, data: Mapping[str, Any], schemas: Path | None = None) -> None:
        """Append one event by ourselves, with a history like any writer's."""
        path = self.folder / f"own{len(self.histories)}.history"
        self.histories.append(path)
        one = Tried(str(uuid.UUID(int=self.source.getrandbits(128), version=4)), stream, type_, data)
        with path.open("a", encoding="utf-8") as file, psycopg.connect(self.dsn) as connection:
            recorder = Recorder(file)
            recorder.trying([one])
            registry = Registry.load(*([schemas] if schemas else []))
            append(connection, stream, NewEvent(type_, data, uuid.UUID(one.id)), registry=registry)
            connection.execute("INSERT INTO business (id) VALUES (%s)", [one.id])
            connection.commit()
            recorder.ended("ok", [one.id])

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text("utf-8", "replace")[-1_500:] if path.exists() else ""

    def note_standstill(self) -> None:
        """Write down, beside the logs, what PostgreSQL's sessions wait for; into the logs, where each process is."""
        for child in self.children.values():
            child.tell_where()
        query = """SELECT pid, state, wait_event_type, wait_event, pg_blocking_pids(pid), age(clock_timestamp(), xact_start),
                   query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        with suppress(psycopg.Error), self.connection() as connection:
            rows = connection.execute(query).fetchall()
            (self.folder / "sessions").write_text("\n".join(" | ".join(map(str, row)) for row in rows), "utf-8")

    def over(self) -> None:
        """The last hurt is over now: recovery is counted from here."""
        self.ended_at = time.monotonic()

    def succeeded_by(self, name: str, timeout_s: float = PATIENCE_S) -> None:
        """Start another relay as ``name`` and wait until it, and no longer the one before, has the lease."""
        epoch = "SELECT max(epoch) FROM outbox.lease"
        before = self.value(epoch)
        self.command(name, "relay")
        until(lambda: self.value(epoch) > before, f"{name} leads", timeout_s)

    def move_to_tablespace(self, name: str, folder: Path) -> None:
        """Let the run's database stand in this folder."""
        space, database = sql.Identifier(name), sql.Identifier(urlsplit(self.dsn).path.lstrip("/"))
        with psycopg.connect(self.servers.address("postgres"), autocommit=True) as connection:
            made = sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(space, sql.Literal(str(folder)))
            connection.execute(made)
            connection.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(database, space))
        self.stack.callback(self._leave_tablespace, space)

    def _leave_tablespace(self, space: sql.Identifier) -> None:
        self.servers.drop_database(self.dsn)
        with psycopg.connect(self.servers.address("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP TABLESPACE {}").format(space))

    def history(self) -> history.History:
        """What the writers know; whether what the log was made to forget was ever in it is unknown."""
        known = history.read(self.histories)
        known.outcomes.update(dict.fromkeys(self.forgotten & known.tried.keys(), "unknown"))
        return known

    def stop_writers(self) -> None:
        """In good order, so that their histories are whole."""
        for name, child in self.children.items():
            if name.startswith("writer") and child.alive:
                child.stop()

    def _start(self, name: str, point: str | None) -> Child:
        arguments, settings = self.recipes[name]
        self.children[name] = child = begin(
            name,
            launch.command,
            ["-v", *arguments],
            settings | self._private(name, point),
            str(self.folder / f"{name}.log"),
        )
        return child

    def _private(self, name: str, point: str | None) -> dict[str, str]:
        chosen = {MUTANT: self.mutant} if self.mutant else {}
        self._mark(name).unlink(missing_ok=True)
        return {**chosen, **({ORDER: point, MARK: str(self._mark(name))} if point else {})}

    def _mark(self, name: str) -> Path:
        return self.folder / f"{name}.passed"
