"""How a command reaches the process of ``outbox up``, which alone may open the embedded stores.

One Unix socket in the data folder, readable by its owner only; JSON in, JSON out: ``{"operation": NAME,
"arguments": {...}}``, then ``{"result": ...}`` or ``{"error": LINE, "kind": CLASS}``. This is the end that asks, and
imports next to nothing; :mod:`projectors.serving` is the one that answers.

A Unix socket's path holds about 100 bytes. For a folder deeper than that the socket stands in a temporary folder
of the owner's, and ``up.sock`` is a symbolic link to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Final

import orjson

from outbox import errors
from outbox.errors import OutboxError

NAME: Final = "up.sock"
REQUEST_BYTES_MAX: Final = 1_048_576


def call(data_dir: Path, operation: str, arguments: Mapping[str, Any]) -> tuple[bool, Any]:
    """(True, result) from the process that holds the data folder, or (False, None) if there is none.

    Raises what the operation raised: the same class if it is one of :mod:`outbox.errors`, else ``OutboxError``.
    """
    connection = _reached(data_dir / NAME)
    if connection is None:
        return False, None
    with connection:
        asked = orjson.dumps({"operation": operation, "arguments": arguments})
        if len(asked) > REQUEST_BYTES_MAX:
            raise OutboxError(f"`outbox up` takes {REQUEST_BYTES_MAX} bytes of arguments at most, not {len(asked)}")
        try:
            connection.send_bytes(asked)
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


def socket_of(path: Path) -> Path:
    """Where the socket stands of which ``path`` is the name in a data folder."""
    return path.readlink() if path.is_symlink() else path


def _reached(path: Path) -> Connection[Any, Any] | None:
    """A connection to who listens; None if nobody does."""
    target = socket_of(path)
    try:
        # Asked first: of a path too long to connect to, whether it is there would never be told.
        return Client(str(target), "AF_UNIX") if target.exists() else None
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise OutboxError(f"`outbox up` on {path.parent} cannot be asked: {error}") from error


def _raised(kind: str, text: str) -> OutboxError:
    found: type[OutboxError] = getattr(errors, kind, OutboxError)
    # Some classes make their text out of parts, which do not travel: only the text does.
    error: OutboxError = OutboxError.__new__(found)
    error.args = (text,)
    return error
