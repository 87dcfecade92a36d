"""Having an operation done: by the process that holds the embedded stores, or here."""

from __future__ import annotations

from typing import Any

import typer

from outbox.errors import OutboxError


def ask(context: typer.Context, operation: str, tell: Any = None, **arguments: Any) -> Any:
    """The result of an operation of :mod:`projectors.operations`. Raises what it raises."""
    from projectors import control
    from projectors.operations import OPERATIONS
    from projectors.wiring import open_read_side

    settings = context.obj.settings()
    if settings.mode == "embedded":
        done, result = control.call(settings.data_dir, operation, arguments)
        if done:
            return result
        if not settings.database.dsn and not (settings.data_dir / "postgres").exists():
            raise OutboxError(f"nothing is in {settings.data_dir} yet: start with `outbox up`, `ingest` or `demo`")
    with open_read_side(settings) as side:
        extra = {"tell": tell} if tell is not None else {}
        return OPERATIONS[operation](side, **arguments, **extra)
