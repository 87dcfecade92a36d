"""What is wrong with a call of the command, in one line, as any other error is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import typer

# click's ClickException, wherever typer's release keeps it: what a wrong call raises.
USAGE: Final[Any] = typer.BadParameter.__mro__[2]

OURS: Final = "Invalid value: "
"""What click puts before a text of our own, which says by itself what is wrong."""


def told(error: Any, app: typer.Typer, words: Sequence[str]) -> str:
    """What is wrong, and where to read how the command is called. ``words``: the call, without the program's name."""
    said = str(error.format_message()).removeprefix(OURS).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; see `{_called(error, app, words)} --help`"


def is_help(error: Any) -> bool:
    """Whether it is no error but the help page, of a command that does nothing by itself."""
    return type(error).__name__ == "NoArgsIsHelpError"  # typer shows it no more than that


def _called(error: Any, app: typer.Typer, words: Sequence[str]) -> str:
    """The command that was called, as far as there is one. click tells it, but of an option that lacks its value."""
    if getattr(error, "ctx", None) is not None:
        return str(error.ctx.command_path)
    command, path = typer.main.get_command(app), "outbox"
    for word in words:
        if (found := getattr(command, "commands", {}).get(word)) is not None:
            command, path = found, f"{path} {word}"
    return path
