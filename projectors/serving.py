"""The end of the control socket that answers: see :mod:`projectors.control`."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Final

import orjson

from outbox.errors import OutboxError
from outbox.event import in_json
from outbox.logs import logger
from projectors.control import NAME, REQUEST_BYTES_MAX, socket_of
from projectors.holding import StoreHeld, held
from projectors.operations import OPERATIONS
from projectors.wiring import ReadSide

log = logger("outbox.up")

REQUESTS_MAX: Final = 16
"""Answered at the same time; more wait in the socket's queue."""
QUEUE_LENGTH: Final = 64
REST_S: Final = 1.0
SOCKET_BYTES_MAX: Final = 100
"""macOS takes 103 bytes of path, Linux 107."""


@contextmanager
def serving(side: ReadSide) -> Iterator[None]:
    """Answer operations on ``side`` until the block ends.

    Raises :class:`~outbox.errors.OutboxError` if another process does so for this folder.
    """
    path = side.settings.data_dir / NAME
    with ExitStack() as stack:
        _alone(path, stack)
        listener = stack.enter_context(_listening(path))
        ended = threading.Event()
        stack.callback(ended.set)
        thread = threading.Thread(target=_accept, args=(listener, side, ended), name="control", daemon=True)
        thread.start()
        yield


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
    listener = Listener(str(socket_of(path)), "AF_UNIX", backlog=QUEUE_LENGTH)
    socket_of(path).chmod(0o600)
    try:
        yield listener
    finally:
        listener.close()
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink():
        shutil.rmtree(socket_of(path).parent, ignore_errors=True)
    path.unlink(missing_ok=True)


def _accept(listener: Listener, side: ReadSide, ended: threading.Event) -> None:
    free = threading.BoundedSemaphore(REQUESTS_MAX)
    while True:
        free.acquire()
        try:
            connection = listener.accept()
        except OSError as error:
            free.release()
            if ended.is_set():
                return
            log.warning("nobody can ask", error=str(error), again_in_s=REST_S)  # too many files are open
            ended.wait(REST_S)
            continue
        threading.Thread(target=_answer, args=(connection, side, free), daemon=True).start()


def _answer(connection: Connection[Any, Any], side: ReadSide, free: threading.BoundedSemaphore) -> None:
    try:
        with connection, suppress(EOFError, OSError):  # whoever asked has gone
            request = connection.recv_bytes(REQUEST_BYTES_MAX)
            connection.send_bytes(orjson.dumps(_done(side, request), default=in_json))
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
