"""The process that has a folder of Chroma's open: ``python -m projectors.sinks.chroma_child DESCRIPTOR FOLDER``.

It is started by :mod:`projectors.sinks.chroma_engine`, says that the folder is open, and answers one question after the
other until its parent has closed its end, or is no more. Signals are its parent's affair, which may have to write once
more before it ends.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

import chromadb
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.errors import NotFoundError

from projectors.sinks.chroma_client import quiet
from projectors.sinks.chroma_engine import DATABASE

Place = tuple[str, UUID]
"""A collection's name and id."""


class Answers:
    """Calls Chroma's methods by their names."""

    def __init__(self, client: ClientAPI) -> None:
        self._client = client
        self._collections: dict[Place, Collection] = {}

    def answer(self, place: Place | None, method: str, given: Mapping[str, Any]) -> Any:
        """What the method returns; of a collection, its id."""
        found = getattr(self._client if place is None else self._at(place), method)(**given)
        if isinstance(found, Collection):
            self._collections[found.name, found.id] = found
            return found.id
        if method == "delete_collection":
            self._collections = {at: kept for at, kept in self._collections.items() if at[0] != given["name"]}
        return found

    def _at(self, place: Place) -> Collection:
        if place not in self._collections:
            name, id_ = place
            found = self._client.get_collection(name, embedding_function=None)
            if found.id != id_:
                raise NotFoundError(f"Collection [{name}] was made anew")
            self._collections[place] = found
        return self._collections[place]


def main() -> None:
    descriptor, folder = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    link = Connection(int(descriptor))
    try:
        alone(Path(folder))
        log_ahead(Path(folder))
        client = chromadb.PersistentClient(folder, settings=quiet())
    except Exception as error:  # noqa: BLE001  # the parent's to tell
        link.send((False, carried(error)))
        return
    link.send((True, None))
    serve(link, Answers(client))
    client.close()


def alone(folder: Path) -> int:
    """Wait until no other process of this kind has the folder: a parent that was killed leaves one that is finishing
    its last call. The lock goes with this process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f"{folder.name}.engine"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def log_ahead(folder: Path) -> None:
    """Have SQLite append to one log, where it would wait for the disk several times a write (https://sqlite.org/wal.html).

    The mode is kept in the file's header. Where it cannot be had it stays as it was, and what is wrong with the file is
    Chroma's to say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(sqlite3.Error), closing(sqlite3.connect(folder / DATABASE)) as database:
        database.execute("PRAGMA journal_mode = WAL")


def serve(link: Connection[Any, Any], answers: Answers) -> None:
    """Answer until the other end is closed."""
    while True:
        try:
            asked = link.recv()
        except (EOFError, OSError):
            return
        try:
            said = (True, answers.answer(*asked))
        except Exception as error:  # noqa: BLE001  # raised where it was asked
            said = (False, carried(error))
        try:
            link.send(said)
        except OSError:
            return


def carried(error: Exception) -> Exception:
    """The error if it can be sent; else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # whatever a foreign class does when it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
