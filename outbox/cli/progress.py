"""Progress bars on standard error; silent for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tell = Callable[[int, int, str], None]


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Tell]:
    """Yields a function of (done, total, detail)."""
    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None, detail="")

        def tell(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total or None, detail=detail[-60:])

        yield tell
