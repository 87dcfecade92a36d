"""``outbox capture``: ordinary tables whose writers cannot be changed, as events of the log."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outbox.cli.commands import MetricsPort, serve_metrics, until_stopped
from outbox.cli.context import Json, not_empty, print_json

if TYPE_CHECKING:
    from outbox.capture.capture import Capture
    from outbox.wiring import WriteSide


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(capture)


def capture(
    context: typer.Context,
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]…", help="Tables to take in; without any, those known go on.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(callback=not_empty, help="DSN of the database they are in (default: the log's own).")
    ] = None,
    name: Annotated[str, typer.Option(help="One capture for each source.")] = "capture",
    drain: Annotated[
        bool,
        typer.Option(help="Capture what is committed by now, then stop; beside another process, once that has ended."),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show what is captured, and stop.")] = False,
    again: Annotated[
        str | None,
        typer.Option(metavar="CATEGORY", callback=not_empty, help="Look at all rows of a table again, and stop."),
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            metavar="CATEGORY", callback=not_empty, help="Capture a table no longer, and stop; its events stay."
        ),
    ] = None,
    forget: Annotated[
        bool, typer.Option(help="Give the whole capture up, since its source was moved or is gone, and stop.")
    ] = False,
    metrics_port: MetricsPort = None,
    json: Json = False,
) -> None:
    """Turn committed changes of ordinary tables into events of streams TABLE-<primary key>, until stopped.

    Begins with all rows there are. Any number of processes may run; one leads. JSON: {"capture", "tables": [CATEGORY],
    "events", "snapshot_rows", "seconds"}; --list: [{"capture", "category", "table", "key", "state", "shape", "slot",
    "lsn", "at", "leader": NAME or null}]; --again and --drop: {"capture", "category"}; --forget:
    {"capture", "categories": [CATEGORY], "slot": NAME or null}.
    """
    from outbox.wiring import open_write_side

    asked = (("again", again), ("drop", drop))
    once = [(word, category) for word, category in asked if category is not None]
    if len(once) + list_ + forget > 1 or (tables and (once or list_ or forget)):
        raise typer.BadParameter("give either tables, --list, --again CATEGORY, --drop CATEGORY or --forget")
    with open_write_side(context.obj.settings()) as side:
        if list_:
            _list(side, json)
        elif forget:
            _forget(side, name, json)
        elif once:
            _once(side, name, source, once[0], json)
        else:
            _run(side, name, source, tables or [], drain=drain, metrics_port=metrics_port, json=json)


def _run(
    side: WriteSide,
    name: str,
    source: str | None,
    tables: list[str],
    *,
    drain: bool,
    metrics_port: int | None,
    json: bool,
) -> None:
    from outbox.cli.progress import progress

    begun = time.monotonic()
    with until_stopped() as stop, progress("rows", quiet=json) as tell:
        capture = _capture(side, name, source, tell)
        if tables:
            capture.add(tables)
        serve_metrics(metrics_port)
        capture.run(stop, drain=drain)
    counts, seconds = capture.counts, round(time.monotonic() - begun, 1)
    if json:
        known = capture.categories()
        print_json(
            {
                "capture": name,
                "tables": known,
                "events": counts.events,
                "snapshot_rows": counts.rows,
                "seconds": seconds,
            }
        )
    else:
        typer.echo(f"{counts.events} events, {counts.rows} rows read from snapshots, in {seconds} s")


def _once(side: WriteSide, name: str, source: str | None, asked: tuple[str, str], json: bool) -> None:
    word, category = asked
    capture = _capture(side, name, source)
    if word == "drop":
        capture.drop(category)
        said = f"{category} is captured no longer; its events stay in the log"
    else:
        capture.again(category)
        said = f"all rows of {category} will be looked at again by the process that captures"
    if json:
        print_json({"capture": name, "category": category})
    else:
        typer.echo(said)


def _forget(side: WriteSide, name: str, json: bool) -> None:
    done = _capture(side, name, None).forget()
    if json:
        print_json({"capture": name, **asdict(done)})
        return
    typer.echo(f"capture {name} is forgotten ({', '.join(done.categories) or 'no tables'}); its events stay in the log")
    if done.slot is not None:
        publication = done.slot.rpartition("_")[0]
        typer.echo(
            f"where its source still is: SELECT pg_drop_replication_slot('{done.slot}');"
            f" DROP PUBLICATION IF EXISTS {publication};"
        )


def _list(side: WriteSide, json: bool) -> None:
    from outbox.capture.registered import listed
    from outbox.database import check_migrated

    with side.connection() as connection:
        check_migrated(connection)
        found = listed(connection)
    if json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        typer.echo("nothing is captured")
        return
    for one in found:
        reached = f"{one.state} at {one.lsn}, {one.at:%Y-%m-%d %H:%M:%S}" if one.lsn else one.state
        leader = one.leader or "nobody"
        typer.echo(f"{one.table} -> {one.category}-<{','.join(one.key)}>: {reached}, led by {leader} ({one.capture})")


def _capture(side: WriteSide, name: str, source: str | None, tell: Any = None) -> Capture:
    from outbox.capture.capture import Capture, CaptureSettings

    told = {} if tell is None else {"tell": tell}
    return Capture(side.dsn, side.registry, CaptureSettings(name=name), source_dsn=source, **told)
