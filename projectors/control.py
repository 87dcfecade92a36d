"""How a command reaches the process of ``outbox up``, which alone may open the embedded stores.

One Unix socket in the data folder, readable by its owner only; JSON in, JSON out: ``{"operation": NAME,
"arguments": {...}}``, then ``{"result": ...}`` or ``{"error": LINE, "kind": CLASS}``.

A Unix socket's path holds about 100 bytes. For a folder deeper than that the socket stands in a temporary folder
of the owner's, and ``up.sock`` is a symbolic link to it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from outbox import errors
from outbox.errors import OutboxError
from projectors.holding import StoreHeld, held
from projectors.operations import OPERATIONS
from projectors.wiring import ReadSide

log = structlog.get_logger("outbox.up")

REQUEST_BYTES_MAX: Final = 1_048_576
REQUESTS_MAX: Final = 16
"""Answered at the same time; more wait in the socket's queue."""
QUEUE_LENGTH: Final = 64
SOCKET_BYTES_MAX: Final = 100
"""macOS takes 103 bytes of path, Linux 107."""
NAME: Final = "up.sock"


@contextmanager
def serving(side: ReadSide) -> Iterator[None]:
    """Answer operations on ``side`` until the block ends.

    Raises :class:`~outbox.errors.OutboxError` if another process does so for this folder.
    """
    path = side.settings.data_dir / NAME
    with ExitStack() as stack:
        _alone(path, stack)
        listener = stack.enter_context(_listening(path))
        thread = threading.Thread(target=_accept, args=(listener, side), name="control", daemon=True)
        thread.start()
        yield


def call(data_dir: Path, operation: str, arguments: Mapping[str, Any]) -> tuple[bool, Any]:
    """(True, result) from the process that holds the data folder, or (False, None) if there is none.

    Raises what the operation raised: the same class if it is one of :mod:`outbox.errors`, else ``OutboxError``.
    """
    connection = _reached(data_dir / NAME)
    if connection is None:
        return False, None
    with connection:
        try:
            connection.send_bytes(orjson.dumps({"operation": operation, "arguments": arguments}))
            answer = orjson.loads(connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise OutboxError("`outbox up` was stopped before it answered") from error
    if "error" in answer:
        raise _raised(answer["kind"], answer["error"])
    return True, answer["result"]


def holder_of(data_dir: Path) -> bool:
    """Whether a process answers for this folder."""
    connection = _reached(data_dir / NAME)
    if connection is not None:
        connection.close()
    return connection is not None


def _reached(path: Path) -> Connection[Any, Any] | None:
    """A connection to who listens; None if nobody does."""
    target = _target(path)
    try:
        # Asked first: of a path too long to connect to, whether it is there would never be told.
        return Client(str(target), "AF_UNIX") if target.exists() else None
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise OutboxError(f"`outbox up` on {path.parent} cannot be asked: {error}") from error


def _alone(path: Path, stack: ExitStack) -> None:
    """Take the right to make the socket: of two that start at once, one gets it."""
    try:
        stack.enter_context(held(path))
    except StoreHeld as error:
        raise OutboxError(f"`outbox up` runs already on {path.parent}") from error


@contextmanager
def _listening(path: Path) -> Iterator[Listener]:
    _remove(path)  # left by one that was killed
    if len(str(path).encode()) > SOCKET_BYTES_MAX:
        path.symlink_to(Path(tempfile.mkdtemp(prefix="outbox-")) / NAME)
    listener = Listener(str(_target(path)), "AF_UNIX", backlog=QUEUE_LENGTH)
    _target(path).chmod(0o600)
    try:
        yield listener
    finally:
        listener.close()
        _remove(path)


def _target(path: Path) -> Path:
    return path.readlink() if path.is_symlink() else path


def _remove(path: Path) -> None:
    if path.is_symlink():
        shutil.rmtree(_target(path).parent, ignore_errors=True)
    path.unlink(missing_ok=True)


def _accept(listener: Listener, side: ReadSide) -> None:
    free = threading.BoundedSemaphore(REQUESTS_MAX)
    while True:
        free.acquire()
        try:
            connection = listener.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_answer, args=(connection, side, free), daemon=True).start()


def _answer(connection: Connection[Any, Any], side: ReadSide, free: threading.BoundedSemaphore) -> None:
    try:
        with connection, suppress(EOFError, ConnectionError):
            request = connection.recv_bytes(REQUEST_BYTES_MAX)
            connection.send_bytes(orjson.dumps(_done(side, request), default=str))
    finally:
        free.release()


def _done(side: ReadSide, request: bytes) -> dict[str, Any]:
    """Do what is asked; whatever goes wrong is for whoever asked."""
    try:
        asked = orjson.loads(request)
        return {"result": OPERATIONS[asked["operation"]](side, **asked["arguments"])}
    except OutboxError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        log.exception("operation failed")
        return {"error": f"{type(error).__name__}: {error}", "kind": "OutboxError"}


def _raised(kind: str, text: str) -> OutboxError:
    found: type[OutboxError] = getattr(errors, kind, OutboxError)
    # Some classes make their text out of parts, which do not travel: only the text does.
    error: OutboxError = OutboxError.__new__(found)
    error.args = (text,)
    return error
