"""How tables and lines for people are printed: names as they are, since somebody will copy them.

A table whose words would be broken in a terminal of its width becomes a list, a line for each value, as psql's
``\\x auto`` does. What goes into a file or a pipe has no width.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from outbox.cli.context import plain

Kind = Literal["name", "number", "text"]
"""What a column holds: names and numbers stay on one line, a text may go on below."""

GAP: Final = 2
"""Blanks between columns."""

TEXT_CELLS: Final = 24
"""A text that is longer than this gets as much room, or it would be a pile of single words."""

BOUNDLESS: Final = 100_000
"""Cells of a line in a file, where rich would take 80 for granted."""


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """``:key:`` in a stream's name stays what it is, and becomes no picture of a key."""
    made = Console(stderr=stderr, soft_wrap=soft_wrap, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = BOUNDLESS
    return made


def print_table(out: Console, columns: Mapping[str, Kind], rows: Sequence[Sequence[str]]) -> None:
    """Rows of values with markup. A line end in a column's name is one in its head."""
    cells = [[Text.from_markup(value, emoji=False) for value in row] for row in rows]
    if _width(columns, cells) > out.width:
        _print_list(out, columns, cells)
        return
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for name, kind in columns.items():
        table.add_column(
            name,
            justify="right" if kind == "number" else "left",
            no_wrap=kind != "text",
            vertical="top",
        )
    for row in cells:
        table.add_row(*row)
    out.print(table, soft_wrap=False)


def shown(text: str) -> str:
    """A text of the log, a store or a broker, for a line with markup."""
    return escape(plain(text))


def _width(columns: Mapping[str, Kind], cells: Sequence[Sequence[Text]]) -> int:
    """What a table needs so that no word is broken."""
    needed = 0
    for n, (name, kind) in enumerate(columns.items()):
        held = [row[n].plain for row in cells]
        wide = max(map(cell_len, [*name.split("\n"), *held]))
        if kind == "text":
            words = [cell_len(word) for text in [name, *held] for word in text.split()]
            wide = max(min(wide, TEXT_CELLS), *words)
        needed += wide + GAP
    return needed - GAP


def _print_list(out: Console, columns: Mapping[str, Kind], cells: Sequence[Sequence[Text]]) -> None:
    names = [" ".join(name.split()) for name in columns]
    left = max(map(len, names)) + GAP
    for number, row in enumerate(cells):
        if number:
            out.print()
        for name, kind, value in zip(names, columns.values(), row, strict=True):
            said = _wrapped(value, out.width - left, left) if kind == "text" else value
            out.print(Text.assemble((name.ljust(left), "bold"), said), soft_wrap=True)


def _wrapped(text: Text, width: int, left: int) -> Text:
    """The text in lines of whole words, each but the first behind ``left`` blanks."""
    lines = textwrap.wrap(text.plain, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return Text(f"\n{' ' * left}".join(lines))
