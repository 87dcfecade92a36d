"""Answers for people: tables and lists by rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.pretty import Pretty

from outbox.cli.tables import console as new_console
from outbox.cli.tables import shown, table
from projectors.marks import SLICES

SNIPPET_LENGTH: Final = 100
ANSWERS: Final[Mapping[bool | None, str]] = {True: "yes", False: "[red]no[/]", None: "-"}


def show_answers(answers: Sequence[Mapping[str, Any]], how: str, console: Console | None = None) -> None:
    """Answers of one question, a line or two each."""
    out = console or new_console()
    if not answers:
        out.print("[dim]nothing found[/]")
    for answer in answers:
        if how == "paths":
            out.print(_path(answer))
        elif how == "neighbours":
            arrow = "-->" if answer["direction"] == "out" else "<--"
            out.print(
                f"{arrow} [cyan]{shown(answer['edge'])}[/]  {shown(answer['key'])}  [dim]{shown(answer['kind'])}[/]"
            )
        else:
            out.print(
                f"[bold]{shown(answer['key'])}[/]  [cyan]{shown(answer['kind'])}[/]"
                f"  [dim]{answer['score']:.4f} {shown(answer['store'])}[/]"
            )
            if answer["snippet"]:
                out.print("    " + shown(" ".join(answer["snippet"].split())[:SNIPPET_LENGTH]))


def show_status(status: Mapping[str, Any]) -> None:
    """The state of relay, stores and streams."""
    out, relay = new_console(), status["relay"]
    out.print(f"log: position {status['log']['last_position']}; waiting for the relay: {relay['waiting']}")
    out.print(f"relay: {shown(relay['leader'] or 'none leads')} (epoch {relay['epoch']})")
    for name in relay["away"]:
        out.print(f"[yellow]away[/] relay {shown(name)} does not run, and the outbox is kept for it")
    for parked in relay["parked"]:
        out.print(f"[yellow]parked[/] {shown(parked['topic'])} {shown(parked['key'])}")
    rows = table("projector", "store", "answers", "generation", "lag", "health", "dead letters")
    for p in status["projectors"]:
        seen = "" if p["seen_s_ago"] is None else f" ({p['seen_s_ago']:.0f} s ago)"
        rows.add_row(
            p["projector"],
            p["store"],
            ANSWERS[p["answers"]],
            p["generation"] or "-",
            "-" if p["lag"] is None else str(p["lag"]),
            shown(p["health"]) + seen,
            str(p["dead_letters"]),
        )
    out.print(rows)
    for p in status["projectors"]:
        if p["answers"] is False:
            out.print(f"[red]no answer[/] from {p['store']}: {shown(p['said'])}")


def show_verify(reports: Sequence[Mapping[str, Any]]) -> None:
    """One line a store, then each record that differs."""
    out = new_console()
    rows = table("projector", "store", "records", "missing", "stale", "extra", "different", "repaired", "seconds")
    for r in reports:
        numbers = [str(r[n]) for n in ("records", "missing", "stale", "extra", "different", "repaired")]
        rows.add_row(r["projector"], r["store"], *numbers, f"{r['seconds']:.2f}")
    out.print(rows)
    for r in reports:
        if r.get("slices") is not None:
            out.print(
                f"{r['projector']}: read {r['slices']} of {SLICES} slices; what records say of themselves is trusted"
            )
        if r.get("why_full"):
            out.print(f"{r['projector']}: read whole, since {shown(r['why_full'])}")
        if r["parked"]:
            out.print(
                f"[yellow]parked[/] {r['projector']}: {r['parked']} stream(s) cannot be projected and are left out; see"
                " `outbox dead-letters list`"
            )
        if would := r.get("would"):
            out.print(
                f"{r['projector']}: a repair would write {would['writes']} record(s) and remove {would['removes']},"
                f" in about {would['seconds']:.1f} s"
            )
        for d in r["differences"]:
            out.print(
                f"[red]{d['kind']}[/] {r['store']} {shown(d['key'])} (stream {shown(d['stream'])}@{d['version']})"
            )


def show_rebuild(done: Mapping[str, Any], *, rollback: bool, dry_run: bool) -> None:
    """What was built or gone back to, or would be."""
    out, name, generation = new_console(soft_wrap=True), done["projector"], done["generation"]
    if rollback:
        out.print(f"{name}: {generation} {'would serve' if dry_run else 'serves'} again")
    elif dry_run:
        _show_forecast(out, done)
    else:
        out.print(f"{name}: {generation} serves, {done['records']} records in {done['seconds']:.1f} s")


def _show_forecast(out: Console, f: Mapping[str, Any]) -> None:
    whole = "what is left of " if f["resumes"] else ""
    out.print(
        f"{f['projector']}: would build {whole}{f['generation']} in {f['store']}: {f['streams']} streams,"
        f" {f['events']} events, about {f['records']} records in about {f['seconds']:.1f} s (by {f['sampled']} streams"
        " folded, written to and read from a throw-away generation)"
    )
    out.print(f"  {f['serving'] or 'nothing'} would be kept for a rollback")
    if f["drops"]:
        out.print(f"  would be dropped: {', '.join(f['drops'])}")


def show_dead_letters(letters: Sequence[Mapping[str, Any]]) -> None:
    """One row a parked stream."""
    if not letters:
        new_console().print("no dead letters")
        return
    rows = table("projector", "stream", "version", "type", "attempts", "error")
    for d in letters:
        rows.add_row(
            d["projector"], shown(d["stream"]), str(d["version"]), d["type"], str(d["attempts"]), shown(d["error"])
        )
    new_console().print(rows)


def show_dead_letter(letter: Mapping[str, Any]) -> None:
    """One parked stream, whole."""
    out = new_console()
    version = f"@{letter['version']}" if letter["version"] else ""
    out.print(f"[bold]{shown(letter['stream'])}{version}[/] in {letter['projector']} ({letter['generation']})")
    out.print(f"  [red]{shown(letter['error'])}[/]")
    out.print(f"  tried {letter['attempts']} time(s); {letter['waiting']} event(s) wait behind")
    if (event := letter["event"]) is None:
        out.print("  a message that is no event came under this key")
        return
    out.print(f"  event {event['id']}, {event['type']}, position {event['position']}, {event['at']}")
    out.print("  its data cannot be read" if event["data"] is None else Pretty(event["data"], max_length=40))


def _path(path: Mapping[str, Any]) -> str:
    parts = [shown(path["nodes"][0])]
    for edge, node in zip(path["edges"], path["nodes"][1:], strict=True):
        parts += [f"[cyan]-{shown(edge)}-[/]", shown(node)]
    return " ".join(parts)
