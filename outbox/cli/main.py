"""The ``outbox`` command. Commands are found by entry point group ``outbox.commands``, so that the read side
adds its own without the write side knowing of it.

Every expected error ends in one line on standard error: exit 1 for what failed, 2 for a wrong call or setting.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import structlog
import typer

from outbox.cli.context import Context
from outbox.errors import InvalidEvent, OutboxError, SettingsError

# The class is the one typer itself raises, wherever its release keeps it.
_USAGE = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="outbox",
    help="An event-sourced outbox: one PostgreSQL transaction, every other store kept equal to its log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Settings file (default: ./outbox.toml).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the embedded mode (default: ./.outbox).")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, to standard error.")] = False,
) -> None:
    """Options before the command."""
    context.obj = Context(config, data_dir)
    configure_logging(logging.INFO if verbose else logging.WARNING)


def configure_logging(level: int) -> None:
    """structlog to standard error: people's lines on a terminal, JSON elsewhere."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


def build() -> typer.Typer:
    """The command with everything installed registered on it."""
    from outbox.cli import commands

    if not app.registered_commands:
        commands.register(app)
        for entry in sorted(entry_points(group="outbox.commands"), key=lambda e: e.name):
            entry.load()(app)
    return app


def main() -> None:
    """The entry point. Turns expected errors into one line and an exit code."""
    try:
        code = build()(standalone_mode=False)
    except _USAGE as error:
        error.show()
        sys.exit(error.exit_code)
    except (SettingsError, InvalidEvent) as error:
        sys.exit(_say(error, 2))
    except OutboxError as error:
        sys.exit(_say(error, 1))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_say("stopped; run it again to go on", 130))
    except BrokenPipeError:  # `outbox events | head`
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: object, code: int) -> int:
    print(f"outbox: {' '.join(str(error).split())}", file=sys.stderr)
    return code
