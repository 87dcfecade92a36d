"""The embedded graph database that Ladybug sinks and readers of one process share.

A generation is two tables: ``<projection>:<generation>:node`` and ``…:edge``. Nodes are never deleted,
tombstones and stubs are nodes that are not ``live``; so a node's offset in its table never changes.

Ladybug (the successor of Kuzu) allows one process a database, one ``Database`` object a process and one
writing transaction at a time. Its errors are all ``RuntimeError``, told apart by their text.

Statements of one process take turns, on one thread each. A reader beside a checkpoint was seen to end in a
wrong graph or a crash (0.22.0), and a second thread made small statements forty times slower.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ladybug

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks.given import only
from projectors.sinks.shared import Shared
from projectors.sinks.turns import Turns, acquired

FILE_NAME: Final = "graph.lbug"
BUFFER_MIB: Final = 256
"""Ladybug's own default is 80 % of the machine's memory."""
THREADS: Final = 1
CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
"""The write-ahead log goes into the database file when it is longer than this."""
PART: Final = 16
"""No transaction is larger than this part of the memory for pages, and no log longer: a checkpoint needs some four
times the texts in it, and for each table those that stand beside them, of up to 131,072 nodes."""
WAIT_S: Final = 30.0
"""Longest wait for another sink's transaction, or for a turn."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_LOCKED: Final = "Could not set lock on file"
_MISSING: Final = re.compile(r"Table .* does not exist")
_PASSING: Final = (
    "Buffer manager exception",
    "IO exception",
    "Only one write transaction",
    "Timeout waiting",
    "panic state",
    "Interrupted",
)
_FULL: Final = "The buffer pool is full"
_COMMITTED: Final = "Transaction committed successfully"


class TooLarge(StoreUnavailable):
    """A transaction does not fit into the memory for pages; a smaller one may."""


@dataclass(slots=True)
class Graph:
    """An open database. ``definitions`` counts the tables made and dropped."""

    database: Any
    log: Path
    """The write-ahead log; not there when all is in the database file."""
    buffer_mib: int
    is_doubtful: bool = False
    """A commit failed: the log may hold what the database does not, and must not be gone on with."""
    writing: threading.Lock = field(default_factory=threading.Lock)
    turns: Turns = field(default_factory=lambda: Turns(WAIT_S, "ladybug: another statement is running"))
    definitions: int = 0

    @property
    def part_bytes(self) -> int:
        """The most that a transaction may hold."""
        return self.buffer_mib * 1024 * 1024 // PART

    @property
    def checkpoint_bytes(self) -> int:
        return min(CHECKPOINT_BYTES, self.part_bytes)

    def is_settled(self) -> bool:
        """Whether the log is as short, and as certain, as a commit and its checkpoint leave it."""
        length = self.log.stat().st_size if self.log.exists() else 0
        return length <= self.checkpoint_bytes and not self.is_doubtful


class Session:
    """A connection to a graph, for one thread at a time, on behalf of one projection."""

    def __init__(self, graph: Graph, projection: str) -> None:
        self._graph = graph
        self._projection = projection
        self._definitions = -1
        self._in_transaction = False
        self._in_turn = False
        self._is_left_open = False
        self._connection: Any = None

    @property
    def part_bytes(self) -> int:
        """The most that a transaction may hold."""
        return self._graph.part_bytes

    def rows(self, template: str, generation: str, most: int | None = None, **parameters: Any) -> list[list[Any]]:
        """Run one statement; ``{node}`` and ``{edge}`` in it stand for the generation's tables. ``most`` bounds
        the rows given (and costs less than a LIMIT).

        Raises :class:`~outbox.errors.StoreUnavailable` or :class:`~outbox.errors.StoreError`.
        """
        prefix = f"{self._projection}:{generation}"
        return self._run(template.format(node=f"`{prefix}:node`", edge=f"`{prefix}:edge`"), parameters, most)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writing transaction, committed at the end or rolled back by an error.

        None is begun before what was committed could go into the database file: what Ladybug commits after a
        checkpoint or a commit that found no memory, it may be unable to read again.
        """
        with self._alone():
            self._settle()
            with self._transaction("BEGIN TRANSACTION"):
                yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One turn for several statements, which must be quick: everybody else waits."""
        if self._in_turn:
            yield
            return
        with self._graph.turns.take():
            self._in_turn = True
            try:
                yield
            finally:
                self._in_turn = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One snapshot, and one turn, for several statements."""
        with self.turn(), self._transaction("BEGIN TRANSACTION READ ONLY"):
            yield

    def define(self, generation: str, *templates: str) -> None:
        """Make or drop tables, each in a transaction of its own."""
        with self._alone():
            for template in templates:
                self.rows(template, generation)
            self._graph.definitions += 1

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Any:
        # A connection keeps its plans, and a plan keeps the table it was made for, dropped or not. Within a
        # transaction it stays all the same: a new connection would be outside of it.
        stale = self._definitions != self._graph.definitions and not self._in_transaction
        if self._connection is None or stale or self._is_left_open:
            self.close()
            self._is_left_open = False
            self._definitions = self._graph.definitions
            self._connection = ladybug.Connection(self._graph.database, num_threads=THREADS)
        return self._connection

    def _alone(self) -> AbstractContextManager[None]:
        return acquired(self._graph.writing, WAIT_S, "ladybug: another sink is writing")

    def _settle(self) -> None:
        if self._graph.is_settled():
            return
        try:
            self._run("CHECKPOINT")
        except TooLarge as error:
            raise StoreUnavailable(
                f"ladybug: the graph has outgrown buffer_mib = {self._graph.buffer_mib}: nothing more is written, and "
                "nothing is lost; start again with a greater buffer_mib"
            ) from error
        self._graph.is_doubtful = False

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._run(begin)
        self._in_transaction = True
        try:
            yield
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._in_transaction = False

    def _commit(self) -> None:
        try:
            self._run("COMMIT")
        except TooLarge:
            self._graph.is_doubtful = True
            raise

    def _roll_back(self) -> None:
        try:
            self._run("ROLLBACK")
        except StoreUnavailable:  # it may have got no turn
            self._is_left_open = True
        except StoreError:  # Ladybug has mostly rolled back by itself and refuses a second time
            pass

    def _run(
        self, statement: str, parameters: Mapping[str, Any] | None = None, most: int | None = None
    ) -> list[list[Any]]:
        with self.turn(), told_apart():
            result = self._connected().execute(statement, dict(parameters or {}))
            found: list[list[Any]] = result.get_all() if most is None else result.get_n(most)
            result.close()
        return found


_GRAPHS: Final[Shared[Graph]] = Shared(lambda graph: graph.database.close())


@contextmanager
def open_session(projection: str, settings: Mapping[str, Any]) -> Iterator[Session]:
    """A session on the graph at ``path``: a folder, or a file that ends in ``.lbug``.

    ``buffer_mib``, heeded where the process opens the path first, bounds the memory for pages (default 256). It must be
    some four times the texts (keys, names, properties) of 131,072 nodes, or of all if they are fewer: the default is
    enough for 500 bytes a node, or for 12,000 nodes of 5 kB. A graph that outgrows it is written no more, until it is
    opened with a greater one.
    Raises :class:`~outbox.errors.SettingsError`, or
    :class:`~outbox.errors.StoreUnavailable` if another process holds the path.
    """
    only("ladybug", settings, "path", "buffer_mib")
    if not settings.get("path"):
        raise SettingsError("ladybug: the setting path is missing")
    if not _NAME.fullmatch(projection):
        raise SettingsError(f"ladybug: projection {projection!r} may hold only letters, digits, '_' and '-'")
    buffer_mib = _buffer_mib(settings.get("buffer_mib") or BUFFER_MIB)
    with _GRAPHS.hold(_file(Path(settings["path"])), lambda path: _open(path, buffer_mib)) as graph:
        session = Session(graph, projection)
        try:
            yield session
        finally:
            session.close()


@contextmanager
def told_apart() -> Iterator[None]:
    """Raise Ladybug's errors as ours, by what their text says."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if _LOCKED in text:
            raise StoreUnavailable(f"ladybug: the database is open in another process: {text}") from error
        if _FULL in text and _COMMITTED not in text:
            raise TooLarge(f"ladybug: {text} A greater buffer_mib helps") from error
        if any(part in text for part in _PASSING):
            raise StoreUnavailable(f"ladybug: {text}") from error
        if _MISSING.search(text):
            raise StoreError(f"ladybug: {text}: prepare the generation first") from error
        raise StoreError(f"ladybug: {text}") from error


def _file(path: Path) -> Path:
    return path if path.suffix == ".lbug" else path / FILE_NAME


def _buffer_mib(given: Any) -> int:
    """What the setting says, which is a text if it comes from the environment."""
    with suppress(TypeError, ValueError):
        if (buffer_mib := int(given)) > 0:
            return buffer_mib
    raise SettingsError(f"ladybug: setting 'buffer_mib' is {given!r}: a number of MiB, more than 0")


def _open(path: Path, buffer_mib: int) -> Graph:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"ladybug: {error}") from error
    graph = Graph(None, path.with_name(f"{path.name}.wal"), buffer_mib)
    with told_apart():
        graph.database = ladybug.Database(
            str(path),
            buffer_pool_size=buffer_mib * 1024 * 1024,
            max_num_threads=THREADS,
            checkpoint_threshold=graph.checkpoint_bytes,
        )
    return graph
