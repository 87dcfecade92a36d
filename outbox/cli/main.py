"""The ``outbox`` command. Commands are found by entry point group ``outbox.commands``, so that the read side
adds its own without the write side knowing of it.

Every expected error ends in one line on standard error: exit 1 for what failed, 2 for a wrong call or setting.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final

import typer

from outbox.cli.context import Context, path, plain
from outbox.cli.usage import USAGE, is_help, told
from outbox.errors import InvalidEvent, OutboxError, SettingsError
from outbox.garbage import collect_rarely

INTERRUPTED: Final = 130
"""What shells report of a command ended by SIGINT (128 + 2)."""

app = typer.Typer(
    name="outbox",
    help="An event-sourced outbox: one PostgreSQL transaction, every other store kept equal to its log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its help pages would take longer to import than to read
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(parser=path, metavar="FILE", help="Settings file (default: ./outbox.toml).")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="Folder of the embedded mode (default: ./.outbox).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, to standard error.")] = False,
) -> None:
    """Options before the command."""
    from outbox.logs import configure_logging  # not above: `--help` need not wait for it

    context.obj = Context(config, data_dir)
    configure_logging(logging.INFO if verbose else logging.WARNING)


def build() -> typer.Typer:
    """The command with everything installed registered on it.

    Raises :class:`~outbox.errors.SettingsError` if an installed package's commands cannot be loaded.
    """
    from outbox.cli import backup, capture, commands

    if not app.registered_commands:
        commands.register(app)
        backup.register(app)
        capture.register(app)
        for entry in sorted(entry_points(group="outbox.commands"), key=lambda e: e.name):
            try:
                register = entry.load()
            except (ImportError, AttributeError) as error:
                raise SettingsError(f"the commands {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
            register(app)
    return app


def main() -> None:
    """The entry point. Turns expected errors into one line and an exit code."""
    collect_rarely()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without some character shows it escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run()
    except USAGE as error:
        if is_help(error):
            error.show()
            sys.exit(error.exit_code)
        sys.exit(_say(plain(told(error, app, sys.argv[1:])), error.exit_code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_say("stopped; run it again to go on", INTERRUPTED))
    except BrokenPipeError:
        sys.exit(_reader_gone())
    except Exception as error:
        known = _exit_code(error)
        if known is None and (unreadable := _not_text(error)):
            sys.exit(_say(f"the argument {unreadable} is not UTF-8", 2))
        if known is None:
            raise
        sys.exit(_say(error, known))
    sys.exit(code)


def _run() -> int:
    """The command's exit code. typer turns Ctrl-C into a code and a broken pipe into an exit: undone here."""
    try:
        code = build()(standalone_mode=False)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):
            raise exit_.__context__ from None
        raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if sys.stdout is not None:  # as with `>&-`
        sys.stdout.flush()  # here, where a reader that has gone can still be answered
    return code if isinstance(code, int) else 0


def _exit_code(error: Exception) -> int | None:
    """2: the call or a setting is wrong; 1: it failed; None: an error of our own code, to be seen in full."""
    if isinstance(error, SettingsError | InvalidEvent):
        return 2
    if isinstance(error, OutboxError | OSError):  # of the system's, the text names the file and the reason
        return 1
    psycopg = sys.modules.get("psycopg")  # not imported for this: without it the error is not its own
    return 1 if psycopg is not None and isinstance(error, psycopg.Error) else None


def _not_text(error: Exception) -> str:
    """The argument, in ASCII, with the bytes that a driver's or a serializer's error is about; else nothing.

    Paths may hold any bytes, so they are refused only where they turn out to be in the way.
    """
    if not isinstance(error, UnicodeEncodeError | TypeError):
        return ""
    return next((ascii(given) for given in sys.argv[1:] if any("\ud800" <= c <= "\udfff" for c in given)), "")


def _reader_gone() -> int:
    """`outbox events | head` is no failure. Python must not find out again when it flushes at the end."""
    sys.stdout = sys.__stdout__
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return 0


def _say(error: object, code: int) -> int:
    print(f"outbox: {' '.join(str(error).split())}", file=sys.stderr)
    return code
