"""The command that goes on after a restore: reconcile."""

from __future__ import annotations

from typing import Annotated

import typer

from outbox.cli.context import Json, print_json
from outbox.errors import OutboxError


def reconcile(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Do it though nothing says that the log went back.")] = False,
    json: Json = False,
) -> None:
    """Bring stores and broker offsets back to a log that was restored to an earlier moment.

    JSON: {"reason", "built": [{"projector", "generation", "streams", "records", "seconds", "elsewhere": [{"generation",
    "store", "why"}]}], "left": [PROJECTOR], "seconds"}
    """
    from dataclasses import asdict

    from outbox.cli.progress import progress
    from projectors import control
    from projectors.reconcile import reconcile as run
    from projectors.wiring import open_read_side

    settings = context.obj.settings()
    if settings.mode == "embedded" and control.holder_of(settings.data_dir):
        raise OutboxError("`outbox up` runs on this folder: stop it, then run `outbox reconcile` again")
    with open_read_side(settings) as side, progress("records", quiet=json) as tell:
        done = run(side, force=force, tell=tell)
    if json:
        print_json(asdict(done))
        return
    if not done.reason:
        typer.echo("nothing says that the log went back; --force does it all the same")
        return
    for one in done.built:
        typer.echo(f"{one.projector}: {one.generation} serves, {one.records} records")
        for old in one.elsewhere:
            typer.echo(f"{one.projector}: {old.generation} stays in {old.store}, not dropped: {old.why}", err=True)
    for name in done.left:
        typer.echo(
            f"{name} is not in these settings and refuses to run: reconcile with settings that name it", err=True
        )
    typer.echo(f"reconciled in {done.seconds:.1f} s (it was needed because {done.reason}); start everything again")
