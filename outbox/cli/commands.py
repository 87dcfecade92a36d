"""The write side's commands: migrate, append, events, ingest, relay, schemas; parked has a file of its own.

Imports stand inside the functions: ``outbox --help`` must not load drivers.
"""

from __future__ import annotations

import json as plain_json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from outbox.cli.context import Json, not_empty, plain, print_json
from outbox.cli.parked import parked
from outbox.errors import InvalidEvent

if TYPE_CHECKING:
    from outbox.event import Event
    from outbox.ingest.report import Report
    from outbox.settings import Settings

SILENT_S: Final = 30.0
"""Who connects for metrics and then says nothing for so long is let go: each takes a thread and a descriptor, and of a
connection whose other end has vanished nothing more is ever heard."""

MetricsPort = Annotated[int | None, typer.Option(min=1, max=65_535, help="Serve Prometheus metrics here.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (migrate, append, events, ingest, relay, schemas):
        app.command()(command)
    app.add_typer(parked)


def migrate(context: typer.Context, json: Json = False) -> None:
    """Create or update the tables. Safe to run twice, and from two places at once.

    JSON: {"migrated": [NAME]}
    """
    from outbox.database import connect
    from outbox.log.migrate import migrate as run
    from outbox.wiring import open_write_side

    with open_write_side(context.obj.settings()) as side, connect(side.dsn) as connection:
        done = [f"{m.number:04} {m.name}" for m in run(connection)]
    if json:
        print_json({"migrated": done})
    else:
        typer.echo("\n".join(f"ran {name}" for name in done) or "up to date")


def append(
    context: typer.Context,
    stream: Annotated[str, typer.Argument(help="The stream, such as customer-42.")],
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="The event type, such as entity.upserted.")],
    data: Annotated[str, typer.Argument(help="The event's data as JSON; - reads standard input.")],
    expected: Annotated[str, typer.Option(help="any, none, exists, or a version number.")] = "any",
    event_id: Annotated[
        str | None, typer.Option("--id", callback=not_empty, help="UUID; the same one again appends nothing.")
    ] = None,
    json: Json = False,
) -> None:
    """Append one event.

    JSON: {"stream", "version", "positions", "token", "repeated"}
    """
    from outbox.event import NewEvent, uuid7
    from outbox.log.append import append as run
    from outbox.wiring import open_write_side

    event = NewEvent(type_, _object(data), _uuid(event_id) if event_id else uuid7())
    wanted: Any = int(expected) if re.fullmatch(r"-?[0-9]{1,30}", expected) else expected
    with open_write_side(context.obj.settings()) as side, side.connection() as connection:
        done = run(connection, stream, event, expected=wanted, registry=side.registry)
    if json:
        print_json(
            {
                "stream": stream,
                "version": done.version,
                "positions": done.positions,
                "token": done.token.xid,
                "repeated": done.repeated,
            }
        )
    else:
        typer.echo(f"{stream} is at version {done.version} (position {done.positions[-1]}, token {done.token})")


def events(
    context: typer.Context,
    stream: Annotated[str | None, typer.Option(callback=not_empty, help="Only this stream.")] = None,
    category: Annotated[str | None, typer.Option(callback=not_empty, help="Only this category.")] = None,
    after: Annotated[int, typer.Option(min=0, help="After this version (with --stream) or position.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=sys.maxsize, help="At most so many.")] = 20,
    json: Json = False,
) -> None:
    """Show events of the log, oldest first.

    JSON, one value a line: {"stream", "version", "type", "data", "id", "position", "at", "meta"}
    """
    from itertools import islice

    if stream is not None and category is not None:
        raise typer.BadParameter("give either --stream or --category")
    from outbox.database import connected
    from outbox.log.read import read_all, read_category, read_stream
    from outbox.wiring import open_write_side

    with open_write_side(context.obj.settings()) as side, connected(side.dsn) as connection:
        found: Iterator[Event]
        if stream is not None:
            found = read_stream(connection, stream, side.registry, after=after)
        elif category is not None:
            found = read_category(connection, category, side.registry, after=after)
        else:
            found = read_all(connection, side.registry, after=after)
        for event in islice(found, limit):
            _show(event, json)


def ingest(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Folders or files; NAME=PATH names a source.")],
    json: Json = False,
) -> None:
    """Read folders of Python source and of text; one event per changed file.

    JSON: {"files", "new", "changed", "unchanged", "deleted", "events", "seconds", "failed": [{"path", "reason"}]}
    """
    from outbox.cli.progress import progress
    from outbox.database import connected
    from outbox.ingest import ingest as run
    from outbox.ingest.postgres import PostgresLog
    from outbox.wiring import open_write_side

    with (
        open_write_side(context.obj.settings()) as side,
        connected(side.dsn) as connection,
        progress("files", quiet=json) as tell,
    ):
        report = run(paths, PostgresLog(connection, side.registry), progress=tell)
    _show_report(report, json)


def relay(
    context: typer.Context,
    drain: Annotated[
        bool, typer.Option(help="Publish what waits, then stop; beside another relay, once that has ended.")
    ] = False,
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Give up a relay of another name for good; run none.")
    ] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Carry the outbox to the broker until stopped. Any number may run; one leads."""
    from outbox.database import check_migrated, connect
    from outbox.wiring import open_write_side

    if forget is not None:
        _forget(context.obj.settings(), forget)
        return
    with until_stopped() as stop, open_write_side(context.obj.settings()) as side:
        side.broker().close()  # settings that cannot work end here, not in the log
        with connect(side.dsn) as connection:
            check_migrated(connection)
        serve_metrics(metrics_port)
        side.relay().run(stop, drain=drain)


def _forget(settings: Settings, name: str) -> None:
    from outbox.database import check_migrated, connected
    from outbox.relay.forget import forget
    from outbox.wiring import open_write_side

    if name == settings.relay.name:
        raise typer.BadParameter(f"{name!r} is the relay of these settings (relay.name)")
    with open_write_side(settings) as side, connected(side.dsn) as connection:
        check_migrated(connection)
        forget(connection, name)
    typer.echo(f"relay {name} is forgotten")


def schemas(context: typer.Context, json: Json = False) -> None:
    """List the event types, their versions and schema ids, and check that each new one reads the old.

    JSON: [{"type", "version", "id"}]
    """
    from outbox.codec import Registry

    found = Registry.load(*context.obj.settings().schemas).check()
    rows = [{"type": s.type, "version": s.version, "id": s.fingerprint} for s in found]
    if json:
        print_json(rows)
    else:
        typer.echo("\n".join(f"{r['type']:<24} v{r['version']}  {r['id']}" for r in rows))


# ---------------------------------------------------------------- shared


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the loops end between two steps.

    A second SIGINT interrupts whatever keeps them: a person at the keyboard means it.
    """
    stop = threading.Event()
    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked = True
        # Not here: the main thread may be interrupted inside ``stop.wait`` with the event's own lock in its hands.
        threading.Thread(target=stop.set, name="stop").start()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_metrics(port: int | None) -> None:
    """Prometheus metrics on all interfaces, if a port is given."""
    if port is not None:
        from prometheus_client import start_http_server

        server, _ = start_http_server(port)
        server.RequestHandlerClass = _impatient(server.RequestHandlerClass)


def _impatient(handler: Any) -> Any:
    """A handler of requests that gives up on who does not speak."""

    class Impatient(handler):  # type: ignore[misc]
        timeout = SILENT_S

        def handle(self) -> None:
            with suppress(TimeoutError):
                super().handle()

    return Impatient


def _object(text: str) -> dict[str, Any]:
    # Not by orjson, which rounds a whole number of over 64 bits: an event is refused, not changed.
    try:
        value = plain_json.loads(sys.stdin.buffer.read() if text == "-" else text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"DATA is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidEvent(f"DATA must be a JSON object, not {type(value).__name__}")
    return value


def _not_json(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _uuid(text: str) -> Any:
    import uuid

    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise InvalidEvent(f"--id {text!r} is no UUID", "id") from error


def _show(event: Event, as_json: bool) -> None:
    if as_json:
        print_json({name: getattr(event, name) for name in event.__slots__})
    else:
        name = event.data.get("name")
        name = "" if name is None else plain(" ".join(str(name).split()))
        typer.echo(
            f"{event.position:>8}  {event.at:%Y-%m-%d %H:%M:%S}  {event.stream}@{event.version}  {event.type}  {name}"
        )


def _show_report(report: Report, as_json: bool) -> None:
    numbers = {n: getattr(report, n) for n in ("files", "new", "changed", "unchanged", "deleted", "events", "seconds")}
    failed = [{"path": str(f.path), "reason": f.reason} for f in report.failed]
    if as_json:
        print_json({**numbers, "failed": failed})
        return
    for failure in failed:
        typer.echo(f"not read: {failure['path']}: {failure['reason']}", err=True)
    typer.echo(
        f"{report.files} files: {report.new} new, {report.changed} changed, {report.unchanged} unchanged, "
        f"{report.deleted} deleted, {len(failed)} not read; {report.events} events in {report.seconds:.1f} s"
    )
