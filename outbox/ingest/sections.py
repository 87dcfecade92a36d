"""Headings to sections: nesting, keys and bounded texts, whatever the markup."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from outbox.ingest.clean import NAME_CHARS_MAX, bounded_key, clean

LEVELS_MAX: Final = 6
"""As in HTML; headings further down count as of this level."""

SLUG_CHARS_MAX: Final = 80

_DROPPED: Final = re.compile(r"[^\w\- ]")


class Heading(NamedTuple):
    level: int
    """1 is the highest."""
    title: str
    line: int
    """Where the heading begins, from 0."""
    body: int
    """The first line after it."""


@dataclass(slots=True, eq=False)
class Section:
    """A heading and what stands below it, up to the next heading of any level."""

    key: str
    title: str
    level: int
    line: int
    """First line, from 1."""
    end_line: int
    text: str
    anchor: str
    """What a link's fragment says: the slug, with ``-1``, ``-2``, ... when repeated (as GitHub does)."""
    links: list[dict[str, Any]] = field(default_factory=list)
    """``contains`` first."""

    def part(self) -> dict[str, Any]:
        """The section as a part of its document's event."""
        return {
            "key": self.key,
            "kind": "section",
            "name": clean(self.title, NAME_CHARS_MAX),
            "text": self.text or clean(self.title),
            "properties": {"level": self.level, "line": self.line, "end_line": self.end_line, "anchor": self.anchor},
            "links": self.links,
        }


def slug(title: str) -> str:
    """A title in a key or an address: lower case, words and hyphens only, never empty."""
    return _DROPPED.sub("", title.strip().lower()).replace(" ", "-")[:SLUG_CHARS_MAX] or "section"


def nest(headings: Sequence[Heading], lines: Sequence[str], stream: str) -> tuple[list[Section], list[dict[str, Any]]]:
    """The sections in order, and the document's own ``contains`` links to those at the top.

    A key is the path of slugs from the top; a repeated one gets ``@2``, ``@3``, ... .
    """
    sections: list[Section] = []
    top: list[dict[str, Any]] = []
    above: list[Section] = []
    seen: Counter[str] = Counter()
    anchors: Counter[str] = Counter()
    for heading, end in _with_ends(headings, len(lines)):
        level = min(heading.level, LEVELS_MAX)
        while above and above[-1].level >= level:
            above.pop()
        key = _key(heading.title, above[-1].key if above else "", seen)
        text = clean("\n".join(lines[heading.body : end]).strip())
        section = Section(key, heading.title, level, heading.line + 1, end, text, _anchor(heading.title, anchors))
        link = {"kind": "contains", "target": f"{stream}#{key}", "properties": {}}
        (above[-1].links if above else top).append(link)
        above.append(section)
        sections.append(section)
    return sections, top


def _with_ends(headings: Sequence[Heading], count: int) -> Iterator[tuple[Heading, int]]:
    ends = [heading.line for heading in headings[1:]] + [count]
    return zip(headings, ends, strict=False)


def _key(title: str, above: str, seen: Counter[str]) -> str:
    key = bounded_key(f"{above}/{slug(title)}" if above else slug(title))
    seen[key] += 1
    return key if seen[key] == 1 else f"{key}@{seen[key]}"


def _anchor(title: str, anchors: Counter[str]) -> str:
    base = slug(title)
    anchors[base] += 1
    return base if anchors[base] == 1 else f"{base}-{anchors[base] - 1}"
