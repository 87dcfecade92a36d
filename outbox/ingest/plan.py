"""What to do about one file, from what the log knows of its stream. Pure."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from outbox.event import NewEvent
from outbox.ingest.log import Known, Write

UPSERTED: Final = "entity.upserted"
DELETED: Final = "entity.deleted"

DIGEST_BYTES: Final = 16
"""128 bits: an edit that keeps its file's digest does not happen by chance."""


def digest_of(source: bytes, path: str, prefix: str, version: int) -> str:
    """Changes with the file's bytes, its path, the prefix and the reader's version: all its data depend on."""
    seed = f"{version}\n{prefix}\n{path}\n".encode(errors="surrogateescape")
    return hashlib.blake2b(seed + source, digest_size=DIGEST_BYTES).hexdigest()


def conflict(known: Known | None, source: str) -> str | None:
    """Why ``source`` must not write this stream, or None if it may. A deleted stream is anyone's."""
    if known is None or known.deleted or known.source == source:
        return None
    owner = f"the source {known.source!r}" if known.source else "another producer"
    return f"its stream {known.stream!r} belongs to {owner}"


def is_unchanged(known: Known | None, digest: str) -> bool:
    return known is not None and not known.deleted and known.digest == digest


def upsert(stream: str, known: Known | None, data: dict[str, Any], meta: dict[str, str]) -> Write:
    """The file's state as the stream's next version."""
    return Write(stream, known.version if known else 0, NewEvent(UPSERTED, data, meta=meta))


def delete(known: Known, source: str, reason: str) -> Write:
    """The end of a stream, until its file comes back."""
    return Write(known.stream, known.version, NewEvent(DELETED, {"reason": reason}, meta={"source": source}))
