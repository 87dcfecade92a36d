"""The commands that keep the log safe: backup, restore.

Imports stand inside the functions: ``outbox --help`` must not load drivers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outbox.cli.context import Json, path, print_json


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(backup)
    app.command()(restore)


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=path, help="Where the backup is; made if missing.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check that the backup is whole; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Write the log to DIR as Avro files; run again, only what is new.

    JSON: {"events", "bytes", "files", "total_events", "last_position", "snapshot", "seconds"}; with --verify
    {"events", "files", "increments", "last_position", "log_id", "snapshot"}
    """
    if verify:
        _verify(folder, json)
    else:
        _backup(context, folder, json)


def restore(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=path, help="Where the backup is.")],
    json: Json = False,
) -> None:
    """Put the backup in DIR into an empty database.

    JSON: {"events", "last_position", "unpublished", "seconds"}
    """
    from dataclasses import asdict

    from outbox.backup import restore as run
    from outbox.cli.progress import progress
    from outbox.database import connected
    from outbox.wiring import open_write_side

    with (
        open_write_side(context.obj.settings()) as side,
        connected(side.dsn) as connection,
        progress("events", quiet=json) as tell,
    ):
        done = run(connection, folder, tell)
    if json:
        print_json(asdict(done))
        return
    typer.echo(f"restored {done.events} events up to position {done.last_position} in {done.seconds:.1f} s")
    if done.unpublished:
        typer.echo(f"{done.unpublished} of them wait to be published (perhaps once more)")
    typer.echo("next: `outbox reconcile` rebuilds every store from this log; until then nothing runs")


def _verify(folder: Path, json: bool) -> None:
    from outbox.backup import verify
    from outbox.cli.progress import progress

    with progress("events", quiet=json) as tell:
        found = verify(folder, tell)
    if json:
        print_json(
            {
                "events": found.events,
                "files": len(found.files),
                "increments": len(found.increments),
                "last_position": found.last_position,
                "log_id": found.log_id,
                "snapshot": found.snapshot,
            }
        )
    else:
        typer.echo(f"{folder}: {found.events} events in {len(found.files)} files, every digest is right")


def _backup(context: typer.Context, folder: Path, json: bool) -> None:
    from dataclasses import asdict

    from outbox.backup import backup as run
    from outbox.cli.progress import progress
    from outbox.database import connected
    from outbox.wiring import open_write_side

    with (
        open_write_side(context.obj.settings()) as side,
        connected(side.dsn) as connection,
        progress("events", quiet=json) as tell,
    ):
        done = run(connection, folder, side.registry, tell)
    if json:
        print_json(asdict(done))
    else:
        typer.echo(
            f"{done.events} new events in {done.files} files ({done.bytes / 1e6:.1f} MB, {done.seconds:.1f} s);"
            f" {done.total_events} in all, up to position {done.last_position}"
        )
