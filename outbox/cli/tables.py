"""How tables and lines for people are printed: names as they are, since somebody will copy them."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from outbox.cli.context import plain


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """``:key:`` in a stream's name stays what it is, and becomes no picture of a key."""
    return Console(stderr=stderr, soft_wrap=soft_wrap, emoji=False)


def table(*columns: str) -> Table:
    """A table that cuts nothing short: what is too long for its column goes on below."""
    return Table(*(Column(name, overflow="fold") for name in columns))


def shown(text: str) -> str:
    """A text of the log, a store or a broker, for a line with markup."""
    return escape(plain(text))
