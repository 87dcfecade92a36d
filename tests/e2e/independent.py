"""A second reading of source files, to check ingest end to end. It shares nothing with outbox.ingest.

Python: ``symtable``, the compiler's own table of scopes, gives the definitions; their qualified names are
put together here. ``tokenize`` counts ``def`` and ``class`` once more. Markdown and reStructuredText: a line
scanner with regular expressions. Plain text: paragraphs.
"""

from __future__ import annotations

import io
import re
import symtable
import tokenize
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Expected:
    """What one file should come to: kinds of parts counted, and the part keys in order."""

    kinds: Counter[str]
    keys: list[str]

    def record_keys(self, stream: str) -> set[str]:
        return {stream} | {f"{stream}#{key}" for key in self.keys}


def python(source: bytes) -> Expected:
    """Raises SyntaxError for what Python refuses. ``keys`` are in the compiler's order, which takes the
    ``else`` of a ``try`` before its handlers: compare them sorted."""
    text = decoded(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = symtable.symtable(text, "<file>", "exec")
    named = list(_named(table, ""))
    times: Counter[str] = Counter()
    keys = []
    for qualname, _ in named:
        times[qualname] += 1
        keys.append(qualname if times[qualname] == 1 else f"{qualname}@{times[qualname]}")
    return Expected(Counter(kind for _, kind in named), keys)


def decoded(source: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return io.TextIOWrapper(io.BytesIO(source), encoding, newline=None).read()


def _named(table: symtable.SymbolTable, prefix: str, owner: symtable.SymbolTable | None = None):
    """``owner``: the scope in which it stands, if that is another; what has type parameters is in a table of theirs."""
    owner = owner or table
    for child in table.get_children():
        if child.get_type() == "class" or _is_def(child):
            name = child.get_name()
            is_global = owner.get_type() != "module" and _declared_global(owner, name)
            qualname = name if is_global else prefix + name
            in_class = owner.get_type() == "class" and not is_global
            kind = "class" if child.get_type() == "class" else "method" if in_class else "function"
            yield qualname, kind
            inner = "." if kind == "class" else ".<locals>."
            yield from _named(child, qualname + inner)
        else:
            yield from _named(child, prefix, owner)


def _is_def(table: symtable.SymbolTable) -> bool:
    """A def, and neither a lambda nor a comprehension: those bear names a def could bear too."""
    if table.get_type() != "function" or table.get_name() == "lambda":
        return False
    return ".0" not in table.get_identifiers()


def _declared_global(table: symtable.SymbolTable, name: str) -> bool:
    try:
        return table.lookup(name).is_declared_global()
    except KeyError:
        return False


def definitions_by_tokens(source: bytes) -> Counter[str]:
    """``def`` and ``class`` as words of the language (they are reserved, so each one defines)."""
    found: Counter[str] = Counter()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.NAME and token.string in ("def", "class"):
            found[token.string] += 1
    return found


FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")


def markdown_titles(source: bytes) -> list[tuple[int, str]]:
    """Levels and titles of the headings of plain Markdown: no HTML blocks, no lazy lines, no inline markup."""
    titles: list[tuple[int, str]] = []
    fence = ""
    before = ""
    for line in source.decode("utf-8-sig", "replace").splitlines():
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
            continue
        if mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence, before = mark[1], ""
        elif heading := ATX.match(line):
            titles.append((len(heading[1]), (heading[2] or "").strip()))
            before = ""
        elif before and (rule := SETEXT.match(line)):
            titles.append((1 if rule[1][0] == "=" else 2, before))
            before = ""
        else:
            before = line.strip()
    return titles


def rest_titles(source: bytes) -> list[tuple[int, str]]:
    """Levels and titles of reStructuredText whose titles stand after an empty line."""
    lines = ["", *source.decode("utf-8-sig", "replace").splitlines(), "", ""]
    styles: list[str] = []
    titles: list[tuple[int, str]] = []
    for number in range(1, len(lines) - 2):
        title, below, above = lines[number].strip(), lines[number + 1].rstrip(), lines[number - 1].rstrip()
        if not title or not _rule(below) or _rule(title):
            continue
        over = _rule(above) and above == below
        if not over and (lines[number][0].isspace() or above.strip()):
            continue
        style = below[0] * (2 if over else 1)
        styles += [style] if style not in styles else []
        titles.append((styles.index(style) + 1, title))
    return titles


def _rule(line: str) -> bool:
    return len(line) > 1 and len(set(line)) == 1 and line[0] in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def section_keys(titles: list[tuple[int, str]]) -> list[str]:
    """Keys as documented: slugs from the top, repeated ones numbered."""
    path: list[tuple[int, str]] = []
    keys: list[str] = []
    for deep, title in titles:
        level = min(deep, 6)
        path = [p for p in path if p[0] < level]
        key = "/".join([*(p[1] for p in path[-1:]), _slug(title)])
        same = sum(1 for k in keys if re.fullmatch(re.escape(key) + r"(@\d+)?", k))
        key = f"{key}@{same + 1}" if same else key
        path.append((level, key))
        keys.append(key)
    return keys


def _slug(title: str) -> str:
    kept = [c for c in title.lower() if c in "-_ " or unicodedata.category(c)[0] in "LN"]
    return "".join("-" if c == " " else c for c in kept)[:80] or "section"


def text(source: bytes, suffix: str) -> Expected:
    """Sections of a text file."""
    if suffix == ".txt":
        keys = [str(n) for n in range(1, plain_runs(source) + 1)]
        return Expected(Counter({"section": len(keys)}), keys)
    titles = rest_titles(source) if suffix == ".rst" else markdown_titles(source)
    keys = section_keys(titles)
    return Expected(Counter({"section": len(keys)}), keys)


def plain_runs(source: bytes) -> int:
    """A run takes in lines until 2,000 characters and an empty line, or 4,000; empty lines begin none."""
    body = re.sub(r"\r\n?", "\n", source.decode("utf-8-sig", "replace"))
    count, place = 0, 0
    while begin := re.compile(r"[^\n]*\S[^\n]*").search(body, place):
        count += 1
        soft = re.compile(r"^[^\S\n]*$", re.MULTILINE).search(
            body, body.find("\n", begin.start() + 1999) + 1 or len(body)
        )
        hard = body.find("\n", begin.start() + 3999) + 1 or len(body)
        if body.find("\n", begin.start() + 1999) < 0:
            break
        place = min(soft.start() if soft else len(body), hard)
    return count


def files(root: Path, suffix: str, skip: frozenset[str] = frozenset()) -> list[Path]:
    """Files of one suffix below ``root``, without those under (or named) ``skip`` or hidden."""
    found = (p for p in root.rglob(f"*{suffix}") if p.is_file())
    return sorted(p for p in found if not any(n in skip or n.startswith(".") for n in p.relative_to(root).parts))
