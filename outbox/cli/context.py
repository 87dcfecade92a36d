"""What every command shares: where its settings come from, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def not_empty(value: Any) -> Any:
    """The value of an option or argument, refused if it is empty: what the caller had in mind for it was in a shell
    variable that is not set, and leaving it out would mean something else."""
    if value == "":
        raise typer.BadParameter("it is empty; is a shell variable not set?")
    return value


def path(text: str) -> Path:
    """A path that is not empty, which would be that of the current folder."""
    return Path(not_empty(text))


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@dataclass(frozen=True, slots=True)
class Context:
    """The options given before the command."""

    config: Path | None = None
    data_dir: Path | None = None

    def settings(self) -> Any:
        """Load the settings (see :mod:`outbox.settings`)."""
        from outbox.settings import load

        return load(self.config, **({"data_dir": self.data_dir} if self.data_dir else {}))


def print_json(value: Any) -> None:
    """One JSON value on one line."""
    import orjson

    from outbox.event import in_json

    typer.echo(orjson.dumps(value, default=in_json, option=orjson.OPT_NON_STR_KEYS))


def plain(text: str) -> str:
    """The text with every character that a terminal might obey spelled out."""
    return "".join(c if _harmless(c) else ascii(c)[1:-1] for c in text)


def _harmless(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or (character.isspace() and character > "\x9f")
