"""What all benchmarks share on the command line: options, the servers, the table, the file of results."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine, results
from benchmarks.measuring import say
from benchmarks.results import Result
from deploy.local.resolve import Resolved, resolve
from outbox.garbage import collect_rarely
from outbox.logs import configure_logging

ROUNDS = 5
WIDTH = 160

Measure = Callable[[Resolved, argparse.Namespace], Iterable[Result]]
"""Measures on these servers, as the options say, and gives the results one after the other."""


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"interleaved repetitions ({ROUNDS})")
    parser.add_argument("--only", default="", help="questions that hold this; the results are shown, not written")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: proves that it runs; nothing is written")
    parser.add_argument("--json", action="store_true", help="print the objects of the file instead of the table")
    parser.add_argument("--results", type=Path, help="the folder to write to, in any case")
    return parser


def run(name: str, services: Iterable[str], measure: Measure, given: argparse.Namespace) -> None:
    """Have the servers, measure, show the results, and write them unless they are partial or quick."""
    unwind_on_sigterm()
    configure_logging(logging.WARNING)
    collect_rarely()  # as the product's own processes do; whoever is measured beside it in this process gains as well
    if given.quick:
        given.rounds = 1
    with resolve(services) as servers:
        about = machine.describe(servers.address("postgres"))
        say(f"{name}: {machine.spoken(about)}")
        found = []
        for result in measure(servers, given):
            found.append(result)
            say(f"{result.question}: {_figures(result.document())}")
    folder = given.results or (None if given.quick or given.only else results.FOLDER)
    if folder:
        results.write(folder / f"{name}.json", found, about)
    documents = [result.document() | about for result in found]
    if given.json:
        print(json.dumps(documents, indent=1, ensure_ascii=False))
    else:
        show(name, documents)


def unwind_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: with the servers and processes that it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def show(title: str, documents: list[dict[str, Any]]) -> None:
    """Print the objects of one file as a table, and the machine below it."""
    table = Table(*COLUMNS, title=title, caption=machine.spoken(documents[0]) if documents else None)
    for document in documents:
        table.add_row(*cells(document))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


COLUMNS = ("question", "ours", "reference", "unit", "ratio", "quartiles", "target", "met")


def cells(document: dict[str, Any]) -> list[str]:
    """The cells of :data:`COLUMNS` for one object."""
    sign = {"at_least": "≥", "at_most": "≤", None: ""}[document["bound"]]
    name = document["reference_name"]
    return [
        document["question"],
        number(document["ours"]),
        "" if name is None else f"{number(document['reference'])} {name}",
        document["unit"],
        number(document["ratio"]),
        " - ".join(number(end) for end in document["spread"] or ()),
        "" if document["target"] is None else f"{sign} {number(document['target'])}",
        {True: "yes", False: "no", None: ""}[document["met"]],
    ]


def number(figure: float | None) -> str:
    """A figure for people: thousands apart, small ones with two or three digits."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 or float(figure).is_integer() else f"{figure:.3g}"


def _figures(document: dict[str, Any]) -> str:
    names = ("ours", "reference", "ratio", "target", "met")
    return ", ".join(f"{n} {document[n]}" for n in names if document[n] is not None)
