"""Headings and links of Markdown, by the CommonMark rules of markdown-it-py."""

from __future__ import annotations

import posixpath
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from outbox.ingest.clean import NAME_CHARS_MAX, clean
from outbox.ingest.scan import TEXT_SUFFIXES
from outbox.ingest.sections import Heading, Section

FRAGMENTS_MAX: Final = 100
"""Fragments listed of one link."""

INLINE_CHARS_MAX: Final = 20_000
"""Paragraphs longer than this are not searched for links: markdown-it takes quadratic time for unclosed brackets."""

_FRONT_MATTER: Final = "---"


class Address(NamedTuple):
    """A link's destination as written, and the line (from 0) of the paragraph it stands in."""

    href: str
    line: int


def parse(lines: Sequence[str]) -> tuple[list[Heading], list[Address]]:
    """Headings outside of lists and quotes, and every link. Front matter is neither text nor heading."""
    matter = _front_matter(lines)
    source = "\n" * matter + "\n".join(lines[matter:])
    tokens = _tokens(source)
    headings = [
        Heading(int(token.tag[1]), _title(tokens[place + 1]), token.map[0], token.map[1])
        for place, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    return headings, list(_addresses(tokens))


def resolve(address: str, path: str) -> tuple[str, str] | None:
    """The path within the root and the fragment that a relative link in the file at ``path`` leads to.

    None for what is no text file of the root: other schemes, absolute paths, ways out of the root.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        return None
    fragment = unquote(parts.fragment)
    if not parts.path:
        return (path, fragment) if fragment else None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(parts.path)))
    if target.startswith("../") or PurePosixPath(target).suffix.lower() not in TEXT_SUFFIXES:
        return None
    return target, fragment


def link(
    addresses: Sequence[Address], sections: Sequence[Section], stream: str, path: str, top: list[dict[str, Any]]
) -> None:
    """Add a ``links`` edge to the section each address stands in (to ``top`` above the first heading).

    A fragment of the same document leads to its section; one of another is kept as a property, since
    only that document knows its sections.
    """
    base = stream.removesuffix(path)
    anchors = {section.anchor: section.key for section in sections}
    starts = [section.line - 1 for section in sections]
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for address in addresses:
        resolved = resolve(address.href, path)
        if resolved is None:
            continue
        target, kept = _target(*resolved, path, base, anchors)
        place = bisect_right(starts, address.line) - 1
        edge = found.setdefault(
            (place, target), {"kind": "links", "target": clean(target, _TARGET_CHARS_MAX), "properties": {}}
        )
        _keep(edge["properties"], kept)
    for (place, _), edge in found.items():
        (sections[place].links if place >= 0 else top).append(edge)


_TARGET_CHARS_MAX: Final = 1024
"""Longer than any stream's name with which it could be equal."""


def _target(target: str, fragment: str, path: str, base: str, anchors: dict[str, str]) -> tuple[str, str]:
    if target == path and fragment in anchors:
        return f"{base}{path}#{anchors[fragment]}", ""
    return f"{base}{target}", fragment


def _keep(properties: dict[str, Any], fragment: str) -> None:
    if not fragment:
        return
    listed = properties.setdefault("fragments", [])
    shortened = clean(fragment, NAME_CHARS_MAX)
    if shortened not in listed and len(listed) < FRAGMENTS_MAX:
        listed.append(shortened)


def _front_matter(lines: Sequence[str]) -> int:
    """How many lines of YAML stand before the text (a convention of site generators, not of CommonMark)."""
    if not lines or lines[0].rstrip() != _FRONT_MATTER:
        return 0
    return next((n + 1 for n, line in enumerate(lines) if n and line.rstrip() == _FRONT_MATTER), 0)


def _tokens(source: str) -> list[Token]:
    """Blocks first; then the inside only of those that can matter, which is most of a parser's time saved."""
    parser = MarkdownIt("commonmark").disable(["inline", "text_join"])
    environment: dict[str, Any] = {}
    tokens = parser.parse(source, environment)
    for before, token in zip([None, *tokens], tokens, strict=False):
        is_heading = before is not None and before.type == "heading_open"
        if token.type == "inline" and (is_heading or "]" in token.content) and len(token.content) <= INLINE_CHARS_MAX:
            token.children = []
            parser.inline.parse(token.content, parser, environment, token.children)
    return tokens


def _title(inline: Token) -> str:
    pieces = (" " if child.type in {"softbreak", "hardbreak"} else child.content for child in inline.children or ())
    return " ".join(("".join(pieces) if inline.children else inline.content).split())


def _addresses(tokens: Sequence[Token]) -> Iterator[Address]:
    for token in tokens:
        for child in token.children or ():
            if child.type == "link_open" and token.map:
                yield Address(str(child.attrs.get("href", "")), token.map[0])
