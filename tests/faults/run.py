"""One run: a database of its own, real processes, writers, one fault, and the checks when it is over.

1. The fault's function is called with a :class:`Run`: it starts what it wants, hurts it, and returns once the last
   hurt is over. What it starts with a point armed may end by itself.
2. The writers are stopped in good order; what they know is in their histories.
3. From the fault's end on, the stores are read until they equal the model: that is the recovery. Past the bound it is
   a violation (I6).
4. Every process is stopped by SIGTERM and must end with 0, in good time.
5. Everything is checked at rest.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from outbox.codec import Registry
from outbox.event import NewEvent
from outbox.log.append import append
from tests.faults import broker, checks, history, launch, stores
from tests.faults.checks import Violation
from tests.faults.history import Recorder, Tried
from tests.faults.model import LogRow, expected, joined
from tests.faults.mutants import MUTANT, sabotage
from tests.faults.points import MARK, ORDER
from tests.faults.processes import Child, begin
from tests.faults.proxy import Proxy
from tests.faults.servers import Servers
from tests.faults.stores import Place
from tests.faults.until import TooLong, until
from tests.faults.writer import Assignment

KAFKA_PARTITIONS = 3
STORE_TIMEOUT_S = 10
"""A third of the default, so that what never answers is found within a run."""
START_S = 30.0
QUIET_S = 0.05
"""How often the stores are compared with the model."""

Fault = Callable[["Run"], None]


@dataclass(frozen=True)
class Plan:
    """What a fault needs. ``bound_s``: how long after the fault everything must be right again.

    ``alone``: it hurts servers that other runs use, so no other runs beside it.
    """

    name: str
    inject: Fault
    broker: str = "local"
    engine: str = "poll"
    """The relay's."""
    delivery: str = "at_least_once"
    """The relay's. ``exactly_once``: a reader of committed messages must see no event twice."""
    kinds: tuple[str, ...] = ("rows",)
    bound_s: float = 30.0
    alone: bool = False
    cheap: bool = True
    poison: bool = False
    """Streams are expected to stand still before an event that cannot be folded."""
    topic_whole: bool = True
    """What was published is still on the topic at the end."""
    ages: bool = True
    """A record is not older than its content: see :data:`tests.faults.faults.NOT_YET` for where that is not asked."""


@dataclass(frozen=True)
class Outcome:
    """What a run showed. ``error``: the harness itself failed, so nothing is known."""

    fault: str
    seed: int
    violations: tuple[Violation, ...]
    recovery_s: float | None
    took_s: float
    events: int
    kept: Path | None
    """Logs and histories of a run in which something went wrong."""
    error: str | None = None


@dataclass
class Run:
    """What a fault's function has in its hands."""

    plan: Plan
    servers: Servers
    seed: int
    folder: Path
    dsn: str
    stack: ExitStack
    mutant: str | None = None
    children: dict[str, Child] = field(default_factory=dict)
    recipes: dict[str, tuple[tuple[str, ...], dict[str, str]]] = field(default_factory=dict)
    edges: dict[str, Proxy] = field(default_factory=dict)
    histories: list[Path] = field(default_factory=list)
    ended_at: float | None = None
    quiet: set[str] = field(default_factory=set)
    """Names of processes whose end is not judged: they were meant to be killed, or to fail."""
    found: list[Violation] = field(default_factory=list)
    """What the fault itself saw go wrong."""
    poisoned: bool = False
    """Streams are expected to stand still before an event that cannot be folded."""

    @property
    def mark(self) -> str:
        """A name no other run has."""
        return urlsplit(self.dsn).path.lstrip("/").removeprefix("faults_").replace("_", "x")

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
        self._source = random.Random(self.seed * 7919 + 1)
        self.poisoned = self.plan.poison

    # ------------------------------------------------------------ processes

    def begin(self, *, relay: str | None = None, project: str | None = None, writers: str | None = None) -> None:
        """Relay, projector and two writers, past the projector's first build; each with an order for a point or none."""
        self.command("relay", "relay", point=relay)
        self.command("project", "project", point=project)
        until(lambda: self.serving(), "the first build", START_S)
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

    def died(self, name: str, timeout_s: float = 30.0) -> None:
        """Wait until the process has met its point, which kills it."""
        code = self.children[name].await_end(timeout_s)
        if code is None or code >= 0:
            raise RuntimeError(f"{name} ended by itself with {code}: {self.log(name)}")

    def passed(self, name: str, timeout_s: float = 30.0) -> None:
        """Wait until a process that was paused at its point has ended the call it was paused in."""
        until(self._mark(name).exists, f"{name} goes on", timeout_s)

    def paused(self, name: str, timeout_s: float = 30.0) -> None:
        """Wait until the process stands still at its point."""
        self.children[name].await_pause(timeout_s)

    def run_to_end(self, name: str, *arguments: str, point: str | None = None, timeout_s: float = 60.0) -> int | None:
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

    # ------------------------------------------------------------- settings

    def settings(self, who: str) -> dict[str, str]:
        """The environment of ``who`` (relay or project), with the proxies put on its edges."""
        names = {kind: self.projector(kind) for kind in self.plan.kinds}
        given = {
            "OUTBOX_MODE": "embedded" if self.plan.broker == "local" else "servers",
            "OUTBOX_DATA_DIR": str(self.folder / "data"),
            "OUTBOX_PREFIX": f"f{self.mark}",
            "OUTBOX_RELAY__ENGINE": self.plan.engine,
            "OUTBOX_RELAY__DELIVERY": self.plan.delivery,
            "OUTBOX_DATABASE__DSN": self._dsn_of(who),
            "OUTBOX_STORES": json.dumps({stores.STORES[kind]: self._store(kind) for kind in self.plan.kinds}),
            "OUTBOX_PROJECTORS": json.dumps(
                {
                    name: {
                        "projection": f"tests.faults.projection:{stores.FORMS[kind]}",
                        "store": stores.STORES[kind],
                        "batch": 100,
                    }
                    for kind, name in names.items()
                }
            ),
        }
        return given | (self._kafka(who) if self.plan.broker == "kafka" else {})

    def projector(self, kind: str) -> str:
        """The name of the projector that keeps records of this kind."""
        return f"{kind}{self.mark}"

    def through(self, edge: str) -> Proxy:
        """Put a proxy on an edge before its processes start: ``relay>postgres``, ``project>kafka``, ``write>postgres``,
        ``project>rows`` and the like."""
        who, _, what = edge.partition(">")
        if what == "kafka":
            proxy = self.servers.edge(who.upper())
        else:
            target = self.servers.address("postgres" if what in ("postgres", "rows") else stores.STORES[what])
            parts = urlsplit(target)
            proxy = Proxy((parts.hostname or "", parts.port or 0), edge)
            self.stack.callback(proxy.close)
        self.edges[edge] = proxy
        return proxy

    def unproxied(self, edge: str) -> None:
        """What starts from now on goes straight."""
        self.edges.pop(edge)

    def redirect(self, edge: str, port: int) -> None:
        """Lead an edge to a port of the test's own."""
        self.edges[edge] = _Port(port)  # type: ignore[assignment]

    def _kafka(self, who: str) -> dict[str, str]:
        edge = self.edges.get(f"{who}>kafka")
        bootstrap = f"127.0.0.1:{edge.port}" if edge else self.servers.address("kafka")
        return {
            "OUTBOX_KAFKA__BOOTSTRAP": bootstrap,
            "OUTBOX_KAFKA__PARTITIONS": str(KAFKA_PARTITIONS),
            "OUTBOX_KAFKA__TIMEOUT_S": "5",
        }

    def _dsn_of(self, who: str) -> str:
        return self._via(f"{who}>postgres", self.dsn)

    def _store(self, kind: str) -> dict[str, Any]:
        if kind == "rows":
            return {"dsn": self._via("project>rows", self.dsn), "timeout_s": STORE_TIMEOUT_S}
        return {
            "url": self._via(f"project>{kind}", self.servers.address(stores.STORES[kind])),
            "timeout_s": STORE_TIMEOUT_S,
        }

    def _via(self, edge: str, address: str) -> str:
        proxy = self.edges.get(edge)
        if proxy is None:
            return address
        parts = urlsplit(address)
        user = f"{parts.username}@" if parts.username else ""
        return parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()

    # -------------------------------------------------------- what is there

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """The tests' own connection, past every proxy."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def value(self, query: str, *parameters: Any) -> Any:
        """The first column of a query's first row, or None."""
        with self.connection() as connection:
            row = connection.execute(query, parameters).fetchone()  # type: ignore[call-overload]
            return row[0] if row else None

    def serving(self) -> bool:
        """Whether every projector has a generation that serves."""
        return bool(
            self.value("SELECT count(*) FROM outbox.generation WHERE state = 'serving'") == len(self.plan.kinds)
        )

    def appended(self, more: int, timeout_s: float = 30.0) -> None:
        """Wait until the log has so many more events."""
        count = "SELECT count(*) FROM outbox.event"
        goal = self.value(count) + more
        until(lambda: self.value(count) >= goal, f"{more} more events in the log", timeout_s)

    def succeeded_by(self, name: str, timeout_s: float = 30.0) -> None:
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

    def caught_up(self, timeout_s: float = 30.0) -> None:
        """Wait until every projector's checkpoints have reached what is on the topic by now."""
        ends = broker.ends(self.place_of_broker())
        behind = """
        SELECT count(*) FROM unnest(%s::int[], %s::bigint[]) e (partition, place)
        CROSS JOIN (SELECT projector, generation FROM outbox.generation WHERE state = 'serving') g
        WHERE NOT EXISTS (
            SELECT FROM outbox.checkpoint c WHERE c.projector = g.projector AND c.generation = g.generation
            AND c.partition = e.partition AND c."offset" >= e.place)
        """
        until(
            lambda: self.value(behind, list(ends), list(ends.values())) == 0, "the projectors have caught up", timeout_s
        )

    def published(self, timeout_s: float = 30.0) -> None:
        """Wait until the relay has published all that is committed by now."""
        waiting = """
        SELECT count(*) FROM outbox.outbox o WHERE NOT EXISTS (
            SELECT FROM outbox.relay_cursor c WHERE pg_visible_in_snapshot(o.xid, c.a))
        """
        until(lambda: self.value(waiting) == 0, "the relay has published everything", timeout_s)

    def place(self, kind: str) -> Place:
        name = self.projector(kind)
        serving = self.value(
            "SELECT generation FROM outbox.generation WHERE projector = %s AND state = 'serving'", name
        )
        address = self.dsn if kind == "rows" else self.servers.address(stores.STORES[kind])
        return Place(name, address, serving or "")

    def place_of_broker(self) -> broker.Topic:
        address = self.dsn if self.plan.broker == "local" else self.servers.address("kafka")
        return broker.Topic(self.plan.broker, address, f"f{self.mark}.thing")

    def history(self) -> history.History:
        return history.read(self.histories)

    def stop_writers(self) -> None:
        """In good order, so that their histories are whole."""
        for name, child in self.children.items():
            if name.startswith("writer") and child.alive:
                child.stop()

    # -------------------------------------------------------------- the end

    def require(self, timeout_s: float = 30.0) -> None:
        """In the midst of a fault: with the writers stopped, every store must come to equal the model."""
        wrong, _ = self._converged(time.monotonic(), timeout_s)
        self.found += wrong

    def settle(self) -> tuple[list[Violation], float | None]:
        """Wait until every store equals the model; how long that took after the fault, and what is wrong if it did
        not come to that."""
        ended_at = self.ended_at or time.monotonic()
        self.stop_writers()
        return self._converged(ended_at, self.plan.bound_s)

    def _converged(self, ended_at: float, bound_s: float) -> tuple[list[Violation], float | None]:
        with self.connection() as connection:
            log = checks.log_rows(connection)
        known = self.history()
        if {row.id for row in log} - known.tried.keys():
            return [], None  # told by the check of the log
        model = expected(log, known, poison=self.poisoned)
        deadline, wrong = ended_at + bound_s, [Violation("I6", "not looked at")]
        while wrong and time.monotonic() < deadline:
            wrong = [v for kind in self.plan.kinds for v in self._compared(kind, model)]
            if wrong:
                self._check_alive()
                time.sleep(QUIET_S)
        if not wrong:
            return [], time.monotonic() - ended_at
        return [Violation("I6", f"not converged {bound_s:.0f} s after the fault"), *wrong], None

    def _compared(self, kind: str, model: Mapping[str, Any]) -> list[Violation]:
        try:
            wanted = joined(model) if kind == "nodes" else model
            if not self.plan.ages:
                wanted = {key: replace(one, least=1) for key, one in wanted.items()}
            return list(checks.check_store(kind, stores.READ[kind](self.place(kind)), wanted))
        except Exception as error:  # a store that does not answer now may do so soon: the bound decides
            return [Violation("I6", f"{kind} cannot be read: {' '.join(str(error).split())[:200]}")]

    def _check_alive(self) -> None:
        for name, child in self.children.items():
            if name.startswith(("relay", "project")) and name not in self.quiet and not child.alive:
                raise TooLong(f"{name} ended by itself with {child.exit_code}: {self.log(name)}")

    def stop(self) -> Iterator[Violation]:
        """End everything by SIGTERM."""
        for name, child in self.children.items():
            if name in self.quiet or name.startswith("writer"):
                child.kill()
                continue
            child.await_heed()
            if (code := child.stop()) != 0:
                yield Violation("I6", f"{name} did not end well on SIGTERM: {code}: {self.log(name)[-300:]}")

    def check(self) -> Iterator[Violation]:
        """Everything, at rest."""
        known = self.history()
        with self.connection() as connection:
            log = checks.log_rows(connection)
            business = {id_ for (id_,) in connection.execute("SELECT id::text FROM business")}
            yield from checks.check_log(log, known, business)
            yield from checks.check_audit(connection)
            yield from checks.check_generations(connection)
        yield from self._check_broker(log)
        if not {row.id for row in log} - known.tried.keys():
            model = expected(log, known, poison=self.poisoned)
            for kind in self.plan.kinds:
                yield from self._compared(kind, model)

    def _check_broker(self, log: Sequence[LogRow]) -> Iterator[Violation]:
        whole, once = self.plan.topic_whole, self.plan.delivery == "exactly_once"
        yield from checks.check_broker(broker.read(self.place_of_broker()), log, whole=whole, once=once)


@dataclass(frozen=True)
class _Port:
    """Stands where a proxy would: only its port is asked for."""

    port: int


def perform(plan: Plan, servers: Servers, seed: int, mutant: str | None = None) -> Outcome:
    """One whole run."""
    began = time.monotonic()
    with ExitStack() as stack:
        dsn = servers.new_database()
        stack.callback(servers.drop_database, dsn)
        if plan.alone:
            stack.callback(servers.revive)
        folder = servers.home / f"{plan.name.replace(' ', '-').replace(':', '').replace('/', '-')}-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        # The embedded mode's commands look for this folder, even where a DSN says that PostgreSQL is elsewhere.
        (folder / "data" / "postgres").mkdir(parents=True)
        run = Run(plan, servers, seed, folder, dsn, stack, mutant)
        error, recovery_s, found = None, None, []
        try:
            if mutant is not None:
                with run.connection() as connection:
                    sabotage(connection, mutant)
            plan.inject(run)
            found, recovery_s = run.settle()
            found += [*run.stop(), *run.check()]
            found += run.found
        except TooLong as late:
            found += [*run.found, Violation("I6", f"{late}")]
            run.note_standstill()
        except Exception as failure:  # of the harness: told apart from a violation, and never passed over
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:600]}"
        finally:
            for child in run.children.values():
                child.kill()
        events = sum(len(path.read_text("utf-8").splitlines()) for path in run.histories)
    distinct = tuple(dict.fromkeys(found))
    kept = None
    if distinct or error is not None:
        kept = Path(tempfile.mkdtemp(prefix="outbox-fault-")) / folder.name
        shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("data", "disk"))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(plan.name, seed, distinct, recovery_s, time.monotonic() - began, events, kept, error)
