"""Plain text as runs of paragraphs, each long enough to mean something and short enough to find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from outbox.ingest.sections import Heading

RUN_CHARS: Final = 2_000
"""A run ends with the paragraph that reaches this: about what an embedding model reads."""

TITLE_CHARS: Final = 80


def runs(lines: Sequence[str]) -> Iterator[Heading]:
    """Each run as a heading without lines of its own; its title is its first line."""
    start: int | None = None
    length = 0
    for place, line in enumerate(lines):
        if start is not None and length >= RUN_CHARS and (not line.strip() or length >= 2 * RUN_CHARS):
            start = None
        if start is None and line.strip():
            start, length = place, 0
            yield Heading(1, line.strip()[:TITLE_CHARS], place, place)
        length += len(line) + 1
