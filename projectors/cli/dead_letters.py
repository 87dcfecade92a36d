"""``outbox dead-letters``: streams that a projector cannot apply, and what parks them."""

from __future__ import annotations

from typing import Annotated

import typer

from outbox.cli.context import Json, not_empty, print_json
from projectors.cli.asking import ask

dead_letters = typer.Typer(
    name="dead-letters", help="Streams that a projector cannot apply: list, show, try again, discard."
)

Projector = Annotated[str, typer.Argument(help="The projector, as listed.")]
Stream = Annotated[str, typer.Argument(help="The stream, as listed.")]


@dead_letters.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_(context)


@dead_letters.command("list")
def list_(
    context: typer.Context,
    projector: Annotated[str | None, typer.Argument(callback=not_empty, help="Only this projector's.")] = None,
    json: Json = False,
) -> None:
    """The streams that are parked, and why."""
    from projectors.cli.show import show_dead_letters

    letters = ask(context, "dead_letters", projector=projector)
    print_json(letters) if json else show_dead_letters(letters)


@dead_letters.command()
def show(context: typer.Context, projector: Projector, stream: Stream, json: Json = False) -> None:
    """One parked stream: the event that parks it, the error, how many events wait behind."""
    from projectors.cli.show import show_dead_letter

    letters = ask(context, "dead_letter", projector=projector, stream=stream)
    if json:
        print_json(letters)
    else:
        for letter in letters:
            show_dead_letter(letter)


@dead_letters.command()
def retry(
    context: typer.Context,
    projector: Annotated[
        str | None, typer.Argument(callback=not_empty, help="Only this projector's; none: all.")
    ] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Only these streams.")] = None,
    json: Json = False,
) -> None:
    """Ask for parked streams to be tried again, each from its beginning and in order; prints what is parked now."""
    from projectors.cli.show import show_dead_letters

    letters = ask(context, "dead_letters", projector=projector, retry=True, streams=stream)
    print_json(letters) if json else show_dead_letters(letters)


@dead_letters.command()
def discard(context: typer.Context, projector: Projector, stream: Stream, json: Json = False) -> None:
    """Give up the event that parks a stream, for this projector and for good; the rest is tried again.

    The event stays in the log; this projector's folds (rebuild and verify, too) pass over it.
    """
    done = ask(context, "discard_dead_letter", projector=projector, stream=stream)
    if json:
        print_json(done)
        return
    versions = ", ".join(map(str, done["skipped"]))
    typer.echo(
        f"{projector}: {stream}: " + (f"version {versions} is passed over from now on" if versions else "forgotten")
    )
