"""``outbox parked``: rows of the outbox that the broker refuses for good, and what waits behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from outbox.cli.context import Json, print_json
from outbox.errors import NotParked

if TYPE_CHECKING:
    from outbox.database import Connection

parked = typer.Typer(
    name="parked", help="Rows that the broker refuses for good: list, try again, discard.", no_args_is_help=True
)

Topic = Annotated[str, typer.Argument(help="The topic, as listed.")]
Key = Annotated[str, typer.Argument(help="The key (of an event: its stream), as listed.")]


@parked.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """Every row that waits, by key and in order.

    JSON: [{"topic", "key", "seq", "position": number or null, "reason", "retry", "at"}]
    """
    from outbox.cli.tables import Kind, console, print_table, shown
    from outbox.relay.parking import parked as find

    with _asked(context) as (connection, relay):
        rows = find(connection, relay)
    if json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        typer.echo("nothing is parked")
        return
    columns: dict[str, Kind] = {"topic": "name", "key": "name", "seq": "number", "since": "name", "reason": "text"}
    listed = [
        (shown(row.topic), shown(row.key), str(row.seq), f"{row.at:%Y-%m-%d %H:%M:%S}", shown(row.reason))
        for row in rows
    ]
    print_table(console(), columns, listed)


@parked.command()
def retry(context: typer.Context, topic: Topic, key: Key, json: Json = False) -> None:
    """Have the relay try a key's rows again, in order; it does so within a second or two.

    JSON: {"topic", "key", "rows"}
    """
    from outbox.relay.parking import retry as ask

    with _asked(context) as (connection, relay):
        rows = _found(ask(connection, topic, key, relay), topic, key)
    if json:
        print_json({"topic": topic, "key": key, "rows": rows})
    else:
        typer.echo(f"{rows} row(s) of {key} will be tried again")


@parked.command()
def discard(
    context: typer.Context,
    topic: Topic,
    key: Key,
    seq: Annotated[int | None, typer.Option(help="Only this row; what waits behind it is then published.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All rows of the key.")] = False,
    json: Json = False,
) -> None:
    """Never publish a row, or all rows, of a key. Events stay in the log, but no projector is told of them: run
    `outbox verify --repair` afterwards.

    JSON: {"topic", "key", "rows"}
    """
    from outbox.relay.parking import discard as give_up

    if (seq is None) != everything:
        raise typer.BadParameter("give either --seq N (one row) or --all")
    with _asked(context) as (connection, relay):
        rows = _found(give_up(connection, topic, key, seq, relay), topic, key)
    if json:
        print_json({"topic": topic, "key": key, "rows": rows})
    else:
        typer.echo(f"{rows} row(s) of {key} discarded")


@contextmanager
def _asked(context: typer.Context) -> Iterator[tuple[Connection, str]]:
    """A connection, and the name of the relay that is asked about."""
    from outbox.database import check_migrated, connected
    from outbox.wiring import open_write_side

    settings = context.obj.settings()
    with open_write_side(settings) as side, connected(side.dsn) as connection:
        check_migrated(connection)
        yield connection, settings.relay.name


def _found(rows: int, topic: str, key: str) -> int:
    if not rows:
        raise NotParked(f"nothing of key {key!r} is parked for topic {topic!r}; `outbox parked list` names what is")
    return rows
