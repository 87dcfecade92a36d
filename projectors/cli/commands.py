"""The read side's commands: up, project, search, status, verify, rebuild, demo; dead-letters has a file of its own.

Imports stand inside the functions: ``outbox --help`` must not load drivers. What ``--json`` prints is what the
functions of :mod:`projectors.operations` return, and is written down there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from outbox.cli.commands import MetricsPort, serve_metrics, until_stopped
from outbox.cli.context import Json, print_json
from outbox.cli.context import path as path_of
from outbox.errors import OutboxError, SettingsError
from projectors.cli.asking import ask, ask_status
from projectors.cli.dead_letters import dead_letters
from projectors.cli.reconcile import reconcile


def register(app: typer.Typer) -> None:
    """Add these commands."""
    commands: dict[str, Callable[..., None]] = {
        "up": up,
        "project": project,
        "search": search,
        "status": status,
        "verify": verify,
        "rebuild": rebuild,
        "reconcile": reconcile,
        "demo": demo,
    }
    for name, command in commands.items():
        app.command(name)(command)
    app.add_typer(dead_letters)


def up(
    context: typer.Context,
    metrics_port: MetricsPort = None,
) -> None:
    """Run everything in the foreground: PostgreSQL, relay and projectors, in one process and one folder."""
    from outbox.database import check_migrated, connected
    from projectors import control
    from projectors.serving import serving
    from projectors.wiring import Running, open_read_side

    settings = context.obj.settings()
    if settings.mode != "embedded":
        raise SettingsError("`outbox up` runs the embedded mode; on servers run `outbox relay` and `outbox project`")
    if control.holder_of(settings.data_dir):
        raise OutboxError(f"`outbox up` runs already on {settings.data_dir}")
    with ExitStack() as stack:
        stop = stack.enter_context(until_stopped())
        side = stack.enter_context(open_read_side(settings))
        with connected(side.write.dsn) as connection:
            check_migrated(connection)  # a database of one's own need not be
        stack.enter_context(serving(side))
        running = stack.enter_context(Running(side))
        serve_metrics(metrics_port)
        typer.echo(f"PostgreSQL  {side.write.dsn}")
        for name, plan in side.plans().items():
            typer.echo(f"{name:<11} {plan.store}")
        typer.echo("up; Ctrl-C stops everything")
        while not stop.wait(0.2):
            running.check()


def project(
    context: typer.Context,
    projectors: Annotated[list[str] | None, typer.Argument(help="Names of projectors; none: all.")] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Run projectors until stopped. Any number of processes may share one projector's work."""
    from outbox.database import check_migrated, connect
    from projectors.wiring import Running, open_read_side

    with until_stopped() as stop, open_read_side(context.obj.settings()) as side:
        names = [side.plan(n).name for n in projectors or side.projecting]
        side.write.broker().close()
        with connect(side.write.dsn) as connection:
            check_migrated(connection)
        serve_metrics(metrics_port)
        with Running(side, names, relay=False) as running:
            while not stop.wait(0.2):
                running.check()


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for; a key or name for graph questions.")],
    how: Annotated[str, typer.Option(help="hybrid, semantic, text, find, neighbours or paths.")] = "hybrid",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 10,
    to: Annotated[str | None, typer.Option(help="paths: the other node's key.")] = None,
    depth: Annotated[int, typer.Option(min=1, max=6, help="paths: at most so many edges.")] = 4,
    direction: Annotated[str, typer.Option(help="neighbours: out, in or both.")] = "both",
    edge: Annotated[list[str] | None, typer.Option(help="neighbours: only these kinds of edges.")] = None,
    token: Annotated[str | None, typer.Option(help="First wait until this transaction can be found.")] = None,
    json: Json = False,
) -> None:
    """Search the stores."""
    from projectors.cli.show import show_answers

    if direction not in {"out", "in", "both"}:
        raise SettingsError(f"--direction is {direction!r}: out, in or both")
    answers = ask(
        context,
        "search",
        text=text,
        how=how,
        limit=limit,
        target=to,
        depth=depth,
        direction=direction,
        edges=edge,
        token=token,
    )
    print_json(answers) if json else show_answers(answers, how)


def status(context: typer.Context, json: Json = False) -> None:
    """Lag and health per projector, whether each store answers now, parked streams, dead letters."""
    from projectors.cli.show import show_status

    found = ask_status(context)
    print_json(found) if json else show_status(found)


def verify(
    context: typer.Context,
    projectors: Annotated[list[str] | None, typer.Argument(help="Names of projectors; none: all.")] = None,
    repair: Annotated[bool, typer.Option(help="Write the records that differ, and only those.")] = False,
    quick: Annotated[bool, typer.Option(help="Read only the slices of a store whose sums differ; see above.")] = False,
    dry_run: Annotated[bool, typer.Option(help="With --repair: say what would be written, and write nothing.")] = False,
    json: Json = False,
) -> None:
    """Compare every record of the stores with the log. Exits 1 if one differs, naming it.

    --quick finds each record that is missing, stale or too many by reading little. It trusts what a record says of
    itself: content that somebody changed in the store is found without --quick only.
    """
    from outbox.cli.progress import progress
    from projectors.cli.show import show_verify

    with progress("records", quiet=json) as tell:
        reports = ask(context, "verify", tell=tell, projectors=projectors, repair=repair, quick=quick, dry_run=dry_run)
    print_json(reports) if json else show_verify(reports)
    if any(r["differences"] for r in reports):
        raise typer.Exit(1)


def rebuild(
    context: typer.Context,
    projector: Annotated[str, typer.Argument(help="The projector's name.")],
    check: Annotated[bool, typer.Option(help="Verify the new generation before it serves.")] = True,
    rollback: Annotated[bool, typer.Option(help="Go back to the generation that served before.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done and about how long; change nothing.")] = False,
    json: Json = False,
) -> None:
    """Build a store anew from the log while the old records serve; then switch."""
    from outbox.cli.progress import progress
    from projectors.cli.show import show_rebuild

    asked = {"projector": projector, "check": check, "rollback": rollback, "dry_run": dry_run}
    with progress("records", quiet=json) as tell:
        done = ask(context, "rebuild", tell=tell, **asked)
    print_json(done) if json else show_rebuild(done, rollback=rollback, dry_run=dry_run)


def demo(
    context: typer.Context,
    path: Annotated[
        list[Path] | None,
        typer.Argument(parser=path_of, metavar="[PATH]…", help="What to ingest; none: Python's own library."),
    ] = None,
    json: Json = False,
) -> None:
    """The whole product in one go, embedded: ingest, search, edit, delete, wipe, rebuild, verify."""
    settings = context.obj.settings()
    if settings.mode != "embedded" or settings.database.dsn:
        raise SettingsError(
            "`outbox demo` fills a log and wipes a store: it runs the embedded mode on PostgreSQL of its own,"
            " not on the servers that these settings name"
        )
    from projectors import control
    from projectors.demo import run

    if control.holder_of(settings.data_dir):
        raise OutboxError(f"`outbox up` runs on {settings.data_dir}: stop it, or give the demo another --data-dir")
    if run(settings, path or [], as_json=json):
        raise typer.Exit(1)
