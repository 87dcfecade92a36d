"""The whole product in one go, embedded and on real input: what ``make run`` shows.

Python's own library is copied once into the data folder, ingested, searched, edited, deleted from, wiped out
of one store, rebuilt and verified. A second run finds everything in place and appends nothing.
"""

from __future__ import annotations

import shutil
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from outbox.cli.context import print_json
from outbox.cli.progress import progress
from outbox.cli.tables import Kind, console, print_table, shown
from outbox.database import connected
from outbox.errors import OutboxError
from outbox.ingest import Report, ingest
from outbox.ingest.postgres import PostgresLog
from outbox.log.statement import Token
from outbox.settings import Settings
from projectors import ledger, operations
from projectors.cli.show import show_answers
from projectors.query.search import Search
from projectors.wiring import ReadSide, Running, open_read_side

LEFT_OUT: Final = (
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib-dynload",
    "config-*",
)
EDITED: Final = ("json/decoder.py", "textwrap.py", "heapq.py")
DELETED: Final = ("this.py", "antigravity.py")
MARK: Final = "outbox_demo_mark"
ADDED: Final = (
    f'\n\ndef {MARK}(value):\n    """Zanzibar quokka: a phrase that no other docstring holds."""\n    return value\n'
)
WIPED: Final = "documents"
CATCH_UP_S: Final = 240.0


@dataclass(slots=True)
class Result:
    """What the demo found; :meth:`as_dict` is its last line with ``--json``."""

    files: int = 0
    events: int = 0
    records: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=dict)
    verify: dict[str, dict[str, int]] = field(default_factory=dict)
    rebuild_s: float = 0.0
    wall_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def run(settings: Settings, paths: Sequence[Path], *, as_json: bool = False) -> bool:
    """Run it; True if something did not come out as it should. Raises what the parts raise."""
    started = time.monotonic()
    out, result = console(stderr=as_json), Result()
    with open_read_side(settings) as side:
        sources = [str(p) for p in paths] or [f"stdlib={_library(settings.data_dir, out)}"]
        with Running(side) as running:
            _ingest_all(side, running, sources, result, out, quiet=as_json)
            _ask(side, result, out)
            if not paths:
                _edit(side, running, sources, result, out)
        _wipe_and_rebuild(side, result, out)
        _verify(side, result, out)
    result.wall_s = round(time.monotonic() - started, 2)
    if as_json:
        print_json(result.as_dict())
    else:
        _table(side, result, out)
    return bool(result.failures)


def _library(data_dir: Path, out: Console) -> Path:
    copy = data_dir / "demo" / "stdlib"
    if not copy.exists():
        out.print("[bold]copying[/] Python's own library, so that it can be edited")
        making = copy.with_name("copying")
        shutil.rmtree(making, ignore_errors=True)
        source = Path(sysconfig.get_paths()["stdlib"])
        shutil.copytree(source, making, ignore=_only_python)
        making.rename(copy)
    return copy


def _only_python(folder: str, names: list[str]) -> set[str]:
    left_out = shutil.ignore_patterns(*LEFT_OUT)(folder, names)
    here = Path(folder)
    return set(left_out) | {n for n in names if not n.endswith(".py") and not (here / n).is_dir()}


@contextmanager
def _log(side: ReadSide) -> Iterator[PostgresLog]:
    with connected(side.write.dsn) as connection:
        yield PostgresLog(connection, side.write.registry)


def _ingest_all(
    side: ReadSide, running: Running, sources: Sequence[str], result: Result, out: Console, *, quiet: bool
) -> None:
    started = time.monotonic()
    with _log(side) as log, progress("ingesting files", quiet=quiet) as tell:
        report = ingest(sources, log, progress=tell)
    result.files, result.events = report.files, report.events
    out.print(f"[bold]ingested[/] {_said(report)} in {report.seconds:.1f} s")
    for failure in report.failed:
        out.print(f"  [dim]not read: {shown(str(failure.path))}: {shown(failure.reason)}[/]")
    _caught_up(side, running, quiet=quiet)
    took = time.monotonic() - started
    result.rates = {
        "ingest_files_per_s": round(report.files / max(report.seconds, 1e-9), 1),
        "all_stores_files_per_s": round(report.files / max(took, 1e-9), 1),
    }
    out.print(f"[bold]every store has them[/] {took:.1f} s after the first file was read")


def _caught_up(side: ReadSide, running: Running, *, quiet: bool) -> None:
    """Wait for all projectors; whatever ended one of them is raised here."""
    deadline = time.monotonic() + CATCH_UP_S
    most = 0
    with connected(side.write.dsn) as connection, progress("projecting events", quiet=quiet) as tell:
        token = _now(connection)
        while True:
            running.check()
            try:
                with Search(side) as search:
                    search.wait_for(token, timeout_s=0.5)
                return
            except OutboxError:
                if time.monotonic() > deadline:
                    raise
            behind = [_lag(connection, side, name) for name in side.projecting]
            most = max(most, *behind)
            tell(most - max(behind), most, " ".join(f"{n} {b}" for n, b in zip(side.projecting, behind, strict=True)))


def _now(connection: Any) -> Token:
    return Token(int(connection.execute("SELECT pg_current_xact_id()::text").fetchone()[0]))


def _lag(connection: Any, side: ReadSide, name: str) -> int:
    plan = side.plan(name)
    return ledger.lag(connection, name, ledger.serving(connection, name) or "", plan.topics)


def _ask(side: ReadSide, result: Result, out: Console) -> None:
    with Search(side) as search:
        questions: Mapping[str, tuple[str, Any]] = {
            "semantic: parse a date from text": ("semantic", search.semantic("parse a date from text", 3)),
            "text: decode json document": ("text", search.text("decode json document", 3)),
            "hybrid: wrap long lines of a paragraph": (
                "hybrid",
                [f.hit for f in search.hybrid("wrap long lines of a paragraph", 3)],
            ),
            "graph: who is around json.decoder": ("neighbours", search.neighbours("python-json.decoder", limit=4)),
            "graph: from json to re": ("paths", search.paths("python-json", "python-re", 3, 2)),
        }
    for title, (how, answers) in questions.items():
        out.print(f"[bold]{title}[/]")
        show_answers([{n: getattr(a, n) for n in a.__slots__} for a in answers], how, out)
        if not answers and result.files > 400:
            result.failures.append(f"no answer to {title!r}")


def _edit(side: ReadSide, running: Running, sources: Sequence[str], result: Result, out: Console) -> None:
    folder = Path(sources[0].partition("=")[2])
    for name in EDITED:
        path = folder / name
        if path.exists() and MARK not in path.read_text("utf-8"):
            path.write_text(path.read_text("utf-8") + ADDED, "utf-8")
    for name in DELETED:
        (folder / name).unlink(missing_ok=True)
    with _log(side) as log:
        report = ingest(sources, log)
    result.events += report.events
    result.files = report.files
    _caught_up(side, running, quiet=True)
    out.print(f"[bold]edited and deleted[/] {_said(report)}; every store follows:")
    _check_followed(side, result, out)


def _check_followed(side: ReadSide, result: Result, out: Console) -> None:
    with Search(side) as search:
        marked = {
            "semantic": {h.key for h in search.semantic("Zanzibar quokka phrase " + MARK, 10)},
            "text": {h.key for h in search.text("zanzibar quokka", 10)},
            "graph": {h.key for h in search.find(MARK, 10)},
        }
        gone = {h.key for h in search.find("python-antigravity", 5)} | {
            h.key for h in search.text("antigravity", 50) if h.key.startswith("python-antigravity")
        }
    for kind, keys in marked.items():
        found = sum(key.endswith("#" + MARK) for key in keys)
        out.print(f"  {kind}: {found} of {len(EDITED)} new functions found")
        if found != len(EDITED):
            result.failures.append(f"{kind} search finds {found} of {len(EDITED)} edits")
    out.print(f"  deleted modules still found: {len(gone)}")
    if gone:
        result.failures.append(f"deleted records are still found: {sorted(gone)}")


def _wipe_and_rebuild(side: ReadSide, result: Result, out: Console) -> None:
    name = WIPED if WIPED in side.projecting else next(iter(side.projecting))
    with connected(side.write.dsn) as connection, side.open_sink(name) as sink:
        generation = ledger.serving(connection, name)
        if generation is not None:
            sink.drop(generation)
    out.print(f"[bold]wiped[/] all {name} out of {side.plan(name).store}")
    built = operations.rebuild(side, projector=name)
    result.rebuild_s = round(built["seconds"], 2)
    result.rates["rebuild_records_per_s"] = round(built["records"] / max(built["seconds"], 1e-9), 1)
    out.print(f"[bold]rebuilt[/] {built['records']} records from the log in {built['seconds']:.1f} s")


def _verify(side: ReadSide, result: Result, out: Console) -> None:
    with connected(side.write.dsn) as connection:
        result.lag = {name: _lag(connection, side, name) for name in side.projecting}
    for report in operations.verify(side):
        store = report["store"]
        result.records[store] = report["records"]
        result.verify[store] = {k: report[k] for k in ("missing", "stale", "extra", "different")}
        if report["differences"] or report["parked"]:
            result.failures.append(f"{store} differs from the log: {report['differences'][:3]}")
    out.print("[bold]verified[/] every record of every store against the log")


def _table(side: ReadSide, result: Result, out: Console) -> None:
    out.print(f"[bold]{result.files} files, {result.events} events appended[/]")
    found = ("missing", "stale", "extra", "different")
    columns: dict[str, Kind] = {"store": "name", **dict.fromkeys(("records", "lag", *found), "number")}
    rows = [
        (
            plan.store,
            str(result.records[plan.store]),
            str(result.lag[name]),
            *(str(result.verify[plan.store][k]) for k in found),
        )
        for name, plan in side.plans().items()
    ]
    print_table(out, columns, rows)
    rates = ", ".join(f"{k.replace('_per_s', '').replace('_', ' ')} {v:,.0f}/s" for k, v in result.rates.items())
    out.print(f"{rates}; rebuild {result.rebuild_s:.1f} s; in all {result.wall_s:.1f} s")
    for failure in result.failures:
        out.print(f"[red]failed:[/] {shown(failure)}")


def _said(report: Report) -> str:
    return (
        f"{report.files} files: {report.new} new, {report.changed} changed, {report.unchanged} unchanged, "
        f"{report.deleted} deleted, {report.events} events"
    )
