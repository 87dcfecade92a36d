"""Having an operation done: by the process that holds the embedded stores, or here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from outbox.errors import OutboxError

if TYPE_CHECKING:
    from outbox.settings import Settings


def ask(context: typer.Context, operation: str, tell: Any = None, **arguments: Any) -> Any:
    """The result of an operation of :mod:`projectors.operations`. Raises what it raises."""

    def here(settings: Settings) -> Any:
        from projectors.operations import OPERATIONS
        from projectors.wiring import open_read_side

        with open_read_side(settings) as side:
            extra = {"tell": tell} if tell is not None else {}
            return OPERATIONS[operation](side, **arguments, **extra)

    return _answer(context.obj.settings(), operation, arguments, here)


def ask_status(context: typer.Context) -> dict[str, Any]:
    """What :func:`projectors.status.status` gives: as by :func:`ask`, without importing the whole read side."""
    answer: dict[str, Any] = _answer(context.obj.settings(), "status", {}, _status_here)
    return answer


def _answer(settings: Settings, operation: str, arguments: Mapping[str, Any], here: Callable[[Settings], Any]) -> Any:
    if settings.mode == "embedded":
        from projectors import control

        done, result = control.call(settings.data_dir, operation, arguments)
        if done:
            return result
        if not settings.database.dsn and not (settings.data_dir / "postgres").exists():
            raise OutboxError(f"nothing is in {settings.data_dir} yet: start with `outbox up`, `ingest` or `demo`")
    return here(settings)


def _status_here(settings: Settings) -> dict[str, Any]:
    from outbox.wiring import open_database
    from projectors.layout import Layout
    from projectors.status import status

    with open_database(settings) as dsn:
        return status(Layout(settings, dsn))
