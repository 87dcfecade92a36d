"""How a command reaches the process of ``outbox up``, which alone may open the embedded stores.

One Unix socket in the data folder, readable by its owner only; JSON in, JSON out: an operation's name and
arguments, then its result or its error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from outbox import errors
from outbox.errors import OutboxError
from projectors.operations import OPERATIONS
from projectors.wiring import ReadSide

log = structlog.get_logger("outbox.up")

REQUEST_BYTES_MAX: Final = 1_048_576
NAME: Final = "up.sock"


@contextmanager
def serving(side: ReadSide) -> Iterator[None]:
    """Answer operations on ``side`` until the block ends."""
    path = side.settings.data_dir / NAME
    if holder_of(side.settings.data_dir):
        raise OutboxError(f"`outbox up` runs already on {side.settings.data_dir}")
    path.unlink(missing_ok=True)  # left by one that was killed
    listener = Listener(str(path), "AF_UNIX")
    path.chmod(0o600)
    thread = threading.Thread(target=_accept, args=(listener, side), name="control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def call(data_dir: Path, operation: str, arguments: Mapping[str, Any]) -> tuple[bool, Any]:
    """(True, result) from the process that holds the data folder, or (False, None) if there is none."""
    try:
        connection = Client(str(data_dir / NAME), "AF_UNIX")
    except (FileNotFoundError, ConnectionRefusedError):
        return False, None
    with connection:
        connection.send_bytes(orjson.dumps({"operation": operation, "arguments": arguments}))
        try:
            answer = orjson.loads(connection.recv_bytes())
        except EOFError:
            raise OutboxError("`outbox up` was stopped before it answered") from None
    if "error" in answer:
        kind = getattr(errors, answer["kind"], OutboxError)
        error = OutboxError.__new__(kind)
        error.args = (answer["error"],)
        raise error
    return True, answer["result"]


def holder_of(data_dir: Path) -> bool:
    """Whether a process answers for this folder."""
    try:
        Client(str(data_dir / NAME), "AF_UNIX").close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _accept(listener: Listener, side: ReadSide) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, side), daemon=True).start()


def _answer(connection: Connection[Any, Any], side: ReadSide) -> None:
    with connection, suppress(EOFError, BrokenPipeError):
        request = orjson.loads(connection.recv_bytes(REQUEST_BYTES_MAX))
        try:
            result = OPERATIONS[request["operation"]](side, **request["arguments"])
            answer = {"result": result}
        except Exception as error:  # goes to whoever asked
            if not isinstance(error, OutboxError):
                log.exception("operation failed", operation=request.get("operation"))
            answer = {"error": str(error), "kind": type(error).__name__}
        connection.send_bytes(orjson.dumps(answer, default=str))
