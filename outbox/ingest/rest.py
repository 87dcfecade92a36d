"""Headings of reStructuredText, by the rules of docutils: a line of one punctuation mark below the title,
or above and below it; the level of a style is the order in which styles first appear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from outbox.ingest.sections import Heading

_ADORNMENT: Final = re.compile(r"([!-/:-@\[-`{-~])\1*\s*$")

SHORT_UNDERLINE: Final = 4
"""docutils takes an underline shorter than its title for one from this length on."""

Style = tuple[str, bool]
"""The mark, and whether it stands above the title too."""


def headings(lines: Sequence[str]) -> list[Heading]:
    """The document's headings in order."""
    found: list[Heading] = []
    styles: list[Style] = []
    place = 0
    while place < len(lines):
        heading = _overlined(lines, place, styles) or _underlined(lines, place, styles)
        if heading is None:
            place += 1
        else:
            found.append(heading)
            place = heading.body
    return found


def _overlined(lines: Sequence[str], place: int, styles: list[Style]) -> Heading | None:
    above, title, below = (_line(lines, place + n) for n in range(3))
    mark = _mark(above)
    if not mark or mark != _mark(below) or len(above) != len(below) or _mark(title) == mark:
        return None
    if not _starts_block(lines, place) or not _fits(title.strip(), above):
        return None
    return Heading(_level((mark, True), styles), title.strip(), place, place + 3)


def _underlined(lines: Sequence[str], place: int, styles: list[Style]) -> Heading | None:
    title, below = _line(lines, place), _line(lines, place + 1)
    mark = _mark(below)
    if not mark or title[:1].isspace() or not _fits(title, below) or not _starts_block(lines, place):
        return None
    if _mark(title) and len(title) >= SHORT_UNDERLINE:
        return None  # two rules in a row
    return Heading(_level((mark, False), styles), title, place, place + 2)


def _line(lines: Sequence[str], place: int) -> str:
    return lines[place].rstrip() if place < len(lines) else ""


def _mark(line: str) -> str:
    """The mark a line is made of, if it is made of one."""
    return line[0] if line and _ADORNMENT.match(line) else ""


def _fits(title: str, rule: str) -> bool:
    return bool(title) and (len(rule) >= len(title) or len(rule) >= SHORT_UNDERLINE)


def _starts_block(lines: Sequence[str], place: int) -> bool:
    """Titles stand after an empty line, another title's rule, or at the beginning."""
    before = _line(lines, place - 1) if place else ""
    return not before.strip() or bool(_mark(before))


def _level(style: Style, styles: list[Style]) -> int:
    if style not in styles:
        styles.append(style)
    return styles.index(style) + 1
