"""A Markdown, reStructuredText or plain text file as an entity: the document, with each section as a part.

Pure: the data is a function of the bytes and the names given. Increase :data:`VERSION` with every
change of what comes out, so that files already in the log are read again.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from outbox.ingest import markdown, plain, rest
from outbox.ingest.clean import NAME_CHARS_MAX, REPLACEMENT, clean
from outbox.ingest.errors import UnreadableFile
from outbox.ingest.sections import Heading, Section, nest

VERSION: Final = 1

SECTIONS_MAX: Final = 20_000
"""Sections in one file: more come from a program, and would make an event too large to relay."""

FORMATS: Final = {".md": "markdown", ".markdown": "markdown", ".rst": "rst"}
"""Suffixes to formats; every other one is plain text."""


def read_text(source: bytes, stream: str, ext: str, *, path: str | None = None) -> dict[str, Any]:
    """The data of an ``entity.upserted`` event for one file.

    ``ext`` is its suffix with the dot; ``path`` its path within its root, with which ``stream`` ends (by
    default what follows the stream's first ``/``). Bytes that are not UTF-8 become U+FFFD; their number
    is the property ``replaced``. Raises :class:`UnreadableFile` and nothing else.
    """
    path = stream.partition("/")[2] or stream if path is None else path
    content, replaced = _decode(source)
    lines = _lines(content)
    kind = FORMATS.get(ext.lower(), "text")
    try:
        headings, addresses = _outline(lines, kind)
    except (RecursionError, MemoryError) as error:
        raise UnreadableFile("nested too deeply to be read", path=path) from error
    if len(headings) > SECTIONS_MAX:
        raise UnreadableFile(f"{len(headings)} sections are more than {SECTIONS_MAX}", path=path)
    sections, top = _sections(headings, lines, stream, kind)
    markdown.link(addresses, sections, stream, path, top)
    title = headings[0].title if headings and kind != "text" else ""
    preamble = clean("\n".join(lines[: headings[0].line] if headings else lines).strip())
    return {
        "kind": "document",
        "name": clean(title or PurePosixPath(path).name, NAME_CHARS_MAX) or stream,
        "text": preamble or clean(headings[0].title if headings else PurePosixPath(path).name),
        "properties": {"path": clean(path), "lines": len(lines), "format": kind}
        | ({"replaced": replaced} if replaced else {}),
        "links": top,
        "parts": [section.part() for section in sections],
    }


def _decode(source: bytes) -> tuple[str, int]:
    """The text, and how many stretches of bytes were none. Windows' UTF-16 is known by its mark."""
    encoding = "utf-16" if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    content = source.decode(encoding, errors="replace")
    own = source.decode(encoding, errors="ignore").count(REPLACEMENT)
    return content, content.count(REPLACEMENT) - own


def _lines(content: str) -> list[str]:
    """Not ``splitlines``: that also splits at form feeds and the like, which Markdown's line numbers do not."""
    lines = content.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _outline(lines: Sequence[str], kind: str) -> tuple[list[Heading], list[markdown.Address]]:
    if kind == "markdown":
        return markdown.parse(lines)
    return (rest.headings(lines) if kind == "rst" else list(plain.runs(lines))), []


def _sections(
    headings: Sequence[Heading], lines: Sequence[str], stream: str, kind: str
) -> tuple[list[Section], list[dict[str, Any]]]:
    """Runs of plain text have no titles to be known by: they are numbered."""
    if kind != "text":
        return nest(headings, lines, stream)
    numbered = [heading._replace(title=str(number)) for number, heading in enumerate(headings, 1)]
    sections, top = nest(numbered, lines, stream)
    for section, heading in zip(sections, headings, strict=True):
        section.title = heading.title
    return sections, top
