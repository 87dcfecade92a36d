"""Chroma on a folder, in a process of its own that ends with ours.

Chroma's engine keeps Python's interpreter lock from the beginning of a call to its end: to add 2,000 records stops
every thread of the process for a second. A service that embeds us would answer nobody meanwhile, and our own other
projectors would stand still. So the engine has a process (:mod:`projectors.sinks.chroma_child`), and what it is asked
goes through a pair of sockets that nobody else has.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from outbox.errors import StoreUnavailable

CHILD: Final = "projectors.sinks.chroma_child"

DATABASE: Final = "chroma.sqlite3"
"""Chroma's own name for it."""

ENDS_WITHIN_S: Final = 30.0
"""A process that has lost its other end finishes what it does, and ends; after so long it is killed."""


class Engine:
    """The engine of one folder. Threads take turns; if its process ends, whoever asks next starts another."""

    def __init__(self, folder: Path) -> None:
        """Raises what Chroma raises if it cannot open the folder."""
        self._folder = folder
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection[Any, Any] | None = None
        self._opened: tuple[int, int] | None = None
        with self._turn:
            self._start()

    def ask(self, collection: EngineCollection | None, method: str, given: Mapping[str, Any]) -> Any:
        """What Chroma's method returns; of its client, if there is no collection.

        Raises what Chroma raises, and :class:`~outbox.errors.StoreUnavailable` if the process ends meanwhile.
        """
        place = None if collection is None else (collection.name, collection.id)
        with self._turn:
            link = self._link or self._start()
            return self._exchange(link, (place, method, given))

    def fits(self) -> bool:
        """Whether its process lives, and the folder is the one that was opened: somebody may have removed it since."""
        lives = self._process is not None and self._process.poll() is None
        return lives and self._opened == _identity(self._folder)

    def close(self) -> None:
        """End the process, which closes the folder."""
        with self._turn:
            self._end()

    def _start(self) -> Connection[Any, Any]:
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [get_executable(), "-P", "-m", CHILD, str(there.fileno()), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # a Ctrl-C is for us, also before it is ready to ignore one
            )
        self._link = link = Connection(here.detach())
        try:
            self._exchange(link, None)
        except Exception:
            self._end()
            raise
        self._opened = _identity(self._folder)
        return link

    def _exchange(self, link: Connection[Any, Any], asked: Any) -> Any:
        """Send what is asked, if anything is, and wait for the answer."""
        try:
            if asked is not None:
                link.send_bytes(_pickled(asked))
            done, value = link.recv()
        except (EOFError, OSError) as error:
            status = self._end()
            raise StoreUnavailable(f"chroma: its process for {self._folder} has ended with status {status}") from error
        except BaseException:  # a signal's: the answer is still to come, and must not be the next question's
            self._end()
            raise
        if not done:
            raise value
        return value

    def _end(self) -> int | None:
        process, self._process = self._process, None
        link, self._link = self._link, None
        if link is not None:
            link.close()
        if process is None:
            return None
        try:
            return process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


class _Plain(pickle.Pickler):
    """Sends a text or a number of somebody's own class (an enum's member) as the text or number that it is: the other
    process need not have the class, and has none of a program's main module."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, str):
            return str, (str.__str__(obj),)
        if isinstance(obj, int):
            return int, (int.__int__(obj),)
        if isinstance(obj, float):
            return float, (float.__float__(obj),)
        return NotImplemented


def _pickled(asked: Any) -> bytes:
    written = io.BytesIO()
    _Plain(written, pickle.HIGHEST_PROTOCOL).dump(asked)
    return written.getvalue()


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder's database from another that has taken its place."""
    try:
        found = (folder / DATABASE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class EngineClient:
    """Of ``chromadb.ClientAPI`` what sinks and readers use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_max_batch_size(self) -> int:
        return int(self._engine.ask(None, "get_max_batch_size", {}))

    def get_or_create_collection(self, name: str, **given: Any) -> EngineCollection:
        return self._collection(name, "get_or_create_collection", given)

    def get_collection(self, name: str, **given: Any) -> EngineCollection:
        return self._collection(name, "get_collection", given)

    def delete_collection(self, name: str) -> None:
        self._engine.ask(None, "delete_collection", {"name": name})

    def _collection(self, name: str, method: str, given: Mapping[str, Any]) -> EngineCollection:
        return EngineCollection(self._engine, name, self._engine.ask(None, method, {"name": name, **given}))


class EngineCollection:
    """Of ``chromadb.Collection`` what sinks and readers use; the same arguments, all by name."""

    def __init__(self, engine: Engine, name: str, id_: UUID) -> None:
        self._engine = engine
        self.name = name
        self.id = id_
        """Another one of the name, made later, has another."""

    def count(self) -> int:
        return int(self._engine.ask(self, "count", {}))

    def get(self, **given: Any) -> Any:
        return self._engine.ask(self, "get", given)

    def query(self, **given: Any) -> Any:
        return self._engine.ask(self, "query", given)

    def add(self, **given: Any) -> None:
        self._engine.ask(self, "add", given)

    def update(self, **given: Any) -> None:
        self._engine.ask(self, "update", given)

    def upsert(self, **given: Any) -> None:
        self._engine.ask(self, "upsert", given)

    def delete(self, **given: Any) -> None:
        self._engine.ask(self, "delete", given)
