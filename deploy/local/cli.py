"""The command line: `python -m deploy.local up|down|status [SERVICES…]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.errors import LocalError
from deploy.local.local import Local
from deploy.local.servers import NAMES, known, variable
from deploy.local.service import Service

DEFAULT_HOME: Final = Path(".run/local")
TABLE_WIDTH: Final = 110

app = typer.Typer(
    help="PostgreSQL, Kafka, Neo4j, Elasticsearch and Chroma on this machine, without Docker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Services = Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(NAMES)}; all if none is given.")]
Home = Annotated[Path, typer.Option(help="The folder for data, logs and the record of what runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Extra = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SERVICE.KEY=VALUE", help="Add to a server's configuration; may be repeated."),
]


@app.command()
def up(services: Services = None, home: Home = DEFAULT_HOME, as_json: AsJson = False, extra: Extra = None) -> None:
    """Start servers, wait until they answer and leave them running. Those that run already stay as they are.

    With --json, prints the address of each by the environment variable that the tests read it from.
    """
    chosen = known(services or NAMES)
    local = Local(home, settings=_settings(extra or ()), detached=True)
    started = local.start(*chosen)
    if as_json:
        _print_json({variable(service.name): service.address for service in started})
    else:
        _print_table(started)


@app.command()
def down(services: Services = None, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Stop servers; their data stays in the home."""
    chosen = known(services or ())
    local = _existing(home)
    running = [s.name for s in local.services.values() if s.alive and (not chosen or s.name in chosen)]
    if running:
        local.stop(*running)
    if as_json:
        _print_json({"stopped": running})
    else:
        Console().print(f"stopped {', '.join(running)}" if running else "nothing was running")


@app.command()
def status(services: Services = None, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show what runs. The exit code is 1 if a service asked for (or, with none named, any once started) does not."""
    chosen = known(services or ())
    recorded = _existing(home).services
    shown = [recorded[name] for name in chosen or recorded if name in recorded]
    if as_json:
        _print_json([_row(service) for service in shown])
    else:
        _print_table(shown)
    if len(shown) < len(chosen) or not all(service.alive for service in shown):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; an error is one line and exit code 2."""
    try:
        app()
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _existing(home: Path) -> Local:
    if not home.is_dir():
        raise LocalError(f"there is no folder {home}: nothing was started there")
    return Local(home, detached=True)


def _settings(extra: Iterable[str]) -> dict[str, dict[str, str]]:
    settings: dict[str, dict[str, str]] = {}
    for text in extra:
        where, equals, value = text.partition("=")
        service, dot, key = where.partition(".")
        if not (equals and dot and key):
            raise LocalError(f"--set wants SERVICE.KEY=VALUE, not {text!r}")
        settings.setdefault(service, {})[key] = value
    return settings


def _row(service: Service) -> dict[str, object]:
    return {
        "name": service.name,
        "address": service.address,
        "running": service.alive,
        "pid": service.pid,
        "resident_bytes": service.resident_bytes,
        "started_s": round(service.started_s, 2),
        "log": str(service.log),
    }


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print_table(services: Iterable[Service]) -> None:
    table = Table("service", "address", "state", "pid", "RSS", "start")
    for column in table.columns:
        column.no_wrap = True
    for service in services:
        state = "running" if service.alive else "stopped"
        memory = f"{service.resident_bytes >> 20} MiB" if service.alive else "-"
        pid = str(service.pid) if service.alive else "-"
        table.add_row(service.name, service.address, state, pid, memory, f"{service.started_s:.1f} s")
    # A narrow or absent terminal must not cut an address short: somebody will copy it.
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)
