"""Answers for people: tables and lists by rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.pretty import Pretty

from outbox.cli.tables import Kind, print_table, shown
from outbox.cli.tables import console as new_console
from projectors.marks import SLICES

SNIPPET_LENGTH: Final = 100
DATA_CELLS: Final = 100
"""An event's data take several lines, in a file too; a text among them that is longer than a line is left whole."""
STATUS: Final[Mapping[str, Kind]] = {
    "projector": "name",
    "store": "name",
    "answers": "name",
    "generation": "name",
    "lag": "number",
    "health": "name",
    "dead\nletters": "number",
}
LETTERS: Final[Mapping[str, Kind]] = {
    "projector": "name",
    "stream": "name",
    "version": "number",
    "type": "name",
    "attempts": "number",
    "error": "text",
}
COUNTED: Final = ("records", "missing", "stale", "extra", "different", "repaired")
BRIEF: Final = ("ok", "never ran")
"""A projector's health in a word; anything else is an error's text and has a line of its own."""
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
        out.print(f"[yellow]parked[/] {shown(parked['topic'])} {shown(parked['key'])}", soft_wrap=True)
    print_table(out, STATUS, [_status_row(p) for p in status["projectors"]])
    for p in status["projectors"]:
        if p["health"] not in BRIEF:
            out.print(f"[red]fails[/] {p['projector']}: {shown(p['health'])}", soft_wrap=True)
        if p["answers"] is False:
            out.print(f"[red]no answer[/] from {p['store']}: {shown(p['said'])}", soft_wrap=True)
        if p.get("changed"):
            out.print(f"[red]store changed[/] {shown(p['changed'])}", soft_wrap=True)


def _status_row(p: Mapping[str, Any]) -> Sequence[str]:
    seen = "" if p["seen_s_ago"] is None else f" ({p['seen_s_ago']:.0f} s ago)"
    return (
        p["projector"],
        p["store"],
        ANSWERS[p["answers"]],
        p["generation"] or "-",
        "-" if p["lag"] is None else str(p["lag"]),
        (p["health"] if p["health"] in BRIEF else "[red]fails[/]") + seen,
        str(p["dead_letters"]),
    )


def show_verify(reports: Sequence[Mapping[str, Any]]) -> None:
    """One line a store, then each record that differs."""
    out = new_console()
    counted = [n for n in COUNTED if n != "repaired" or any(r[n] for r in reports)]
    columns: dict[str, Kind] = {"projector": "name", "store": "name", **dict.fromkeys(counted, "number")}
    rows = [(r["projector"], r["store"], *(str(r[n]) for n in counted), f"{r['seconds']:.2f}") for r in reports]
    print_table(out, columns | {"seconds": "number"}, rows)
    for r in reports:
        if r.get("slices") is not None:
            out.print(
                f"{r['projector']}: read {r['slices']} of {SLICES} slices; what records say of themselves is trusted"
            )
        if r.get("why_full"):
            out.print(f"{r['projector']}: read whole, since {shown(r['why_full'])}")
        if r["parked"]:
            out.print(
                f"[yellow]parked[/] {r['projector']}: {r['parked']} stream(s) cannot be projected and are left out:\n"
                "  see `outbox dead-letters list`"
            )
        if would := r.get("would"):
            out.print(
                f"{r['projector']}: a repair would write {would['writes']} record(s) and remove {would['removes']},"
                f" in about {would['seconds']:.1f} s"
            )
        for d in r["differences"]:
            out.print(
                f"[red]{d['kind']}[/] {r['store']} {shown(d['key'])} (stream {shown(d['stream'])}@{d['version']})",
                soft_wrap=True,
            )


def show_rebuild(done: Mapping[str, Any], *, rollback: bool, dry_run: bool) -> None:
    """What was built or gone back to, or would be."""
    out, name, generation = new_console(soft_wrap=True), done["projector"], done["generation"]
    if rollback:
        out.print(f"{name}: {generation} {'would serve' if dry_run else 'serves'} again")
    elif dry_run:
        _show_forecast(out, done)
    else:
        where = f" in {done['store']}" if "store" in done else ""
        out.print(f"{name}: {generation} serves{where}, {done['records']} records in {done['seconds']:.1f} s")
        for one in done.get("elsewhere", ()):
            out.print(_elsewhere(name, one))


def _show_forecast(out: Console, f: Mapping[str, Any]) -> None:
    whole = "what is left of " if f["resumes"] else ""
    out.print(
        f"{f['projector']}: would build {whole}{f['generation']} in {f['store']}: {f['streams']} streams,"
        f" {f['events']} events, about {f['records']} records in about {f['seconds']:.1f} s (by {f['sampled']} streams"
        " folded, written to and read from a throw-away generation)"
    )
    where = f.get("serving_in") if f.get("serving_in") != f["store"] else None
    out.print(f"  {f['serving'] or 'nothing'} would be kept for a rollback" + (f" in {where}" if where else ""))
    if f["drops"]:
        out.print(f"  would be dropped: {', '.join(f['drops'])}")


def _elsewhere(projector: str, one: Mapping[str, Any]) -> str:
    generation, store = one["generation"], one["store"]
    if one["why"]:
        return (
            f"[yellow]left[/] {generation} stays in {store}, where it could not be dropped ({shown(one['why'])});"
            " the next rebuild tries again"
        )
    return (
        f"{generation} is kept in {store}: to go back to it, set projectors.{projector}.store to {store!r}, then"
        f" `outbox rebuild {projector} --rollback`"
    )


def show_dead_letters(letters: Sequence[Mapping[str, Any]]) -> None:
    """One row a parked stream."""
    if not letters:
        new_console().print("no dead letters")
        return
    rows = [
        (d["projector"], shown(d["stream"]), str(d["version"]), d["type"], str(d["attempts"]), shown(d["error"]))
        for d in letters
    ]
    print_table(new_console(), LETTERS, rows)


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
    if event["data"] is None:
        out.print("  its data cannot be read")
    else:
        out.print(Pretty(event["data"], max_length=40, overflow="ignore"), width=min(out.width, DATA_CELLS), crop=False)


def _path(path: Mapping[str, Any]) -> str:
    parts = [shown(path["nodes"][0])]
    for edge, node in zip(path["edges"], path["nodes"][1:], strict=True):
        parts += [f"[cyan]-{shown(edge)}-[/]", shown(node)]
    return " ".join(parts)
