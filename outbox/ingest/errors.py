"""What can go wrong while reading files into the log."""

from __future__ import annotations

from outbox.errors import OutboxError


class IngestError(OutboxError):
    """Nothing can be ingested as asked; nothing was written."""


class SourceError(IngestError):
    """A PATH is missing, cannot be read, or shares its name with another one."""


class UnreadableFile(IngestError):
    """One file cannot be understood; the others go on. The text is ``path:line: why``, on one line."""

    def __init__(self, why: str, line: int | None = None, path: str = "") -> None:
        place = ":".join(str(piece) for piece in (path, line) if piece)
        reason = " ".join(why.split())
        super().__init__(f"{place}: {reason}" if place else reason)
        self.why = reason
        self.line = line
        self.path = path
