"""What an ingest did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outbox.ingest.scan import Failure

Progress = Callable[[int, int, str], None]
"""Called once a file with how many are done, how many there are, and the file's path."""


@dataclass(frozen=True, slots=True)
class Report:
    """``files`` = new + changed + unchanged + the failed ones that are files."""

    files: int
    """Python and text files met under the PATHs."""
    new: int
    """Files whose stream began, or began again, with this ingest."""
    changed: int
    unchanged: int
    deleted: int
    """Streams ended because their file has gone."""
    failed: tuple[Failure, ...]
    """What could not be taken, with the reason. A file that could be before keeps its last good state."""
    notes: tuple[Failure, ...]
    """Files that were taken, with something to know about them."""
    events: int
    """Events appended."""
    bytes: int
    """Bytes of source read."""
    seconds: float
