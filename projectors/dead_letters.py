"""Parked streams as people see and treat them. Plain values in and out, as in :mod:`projectors.operations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from outbox.database import Connection, connected
from outbox.errors import NotParked
from outbox.log.read import read_stream, version_of
from projectors import ledger
from projectors.decoding import Deferring, Unreadable
from projectors.ledger import DeadLetter
from projectors.skipping import skip
from projectors.wiring import ReadSide


def dead_letters(
    side: ReadSide, *, projector: str | None = None, retry: bool = False, streams: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The parked streams; with ``retry`` the projector is asked to try them again.

    ``{"projector", "generation", "stream", "version", "type", "error", "attempts"}`` each. A running projector
    tries again within a second; then the stream is gone from this list, or ``attempts`` has risen.
    """
    with connected(side.write.dsn) as connection:
        if retry:
            for name in [side.plan(projector).name] if projector else side.projecting:
                ledger.ask_retry(connection, name, streams or None)
        return [asdict(d) for d in ledger.dead_letters(connection, projector)]


def dead_letter(side: ReadSide, *, projector: str, stream: str) -> list[dict[str, Any]]:
    """One parked stream, with what parks it.

    As :func:`dead_letters`, and ``"event": {"version", "type", "position", "at", "id", "data", "meta"}`` (null if it
    was no event; ``data`` null where it cannot be decoded) and ``"waiting"``: the stream's events behind it. One
    for each generation in which the stream is parked. Raises :class:`~outbox.errors.NotParked`.
    """
    with connected(side.write.dsn) as connection:
        letters = _letters_of(connection, side, projector, stream)
        last = version_of(connection, stream)
        return [
            {**asdict(d), "event": _event(connection, side, d), "waiting": max(0, last - d.version) if d.version else 0}
            for d in letters
        ]


def discard_dead_letter(side: ReadSide, *, projector: str, stream: str) -> dict[str, Any]:
    """Give up the event that parks a stream, for this projector and for good; the rest is tried again in order.

    ``{"projector", "stream", "skipped": [VERSION]}``. Raises :class:`~outbox.errors.NotParked` if nothing parks the
    stream, or no single event does.
    """
    with connected(side.write.dsn) as connection:
        letters = _letters_of(connection, side, projector, stream)
        versions = list(skip(connection, projector, stream))
        if not versions and any(d.version for d in letters):
            raise NotParked(
                f"{projector}: {stream} is parked because the store refuses a record ({letters[-1].error}); no single"
                " event is to blame: mend the projection or append an event that corrects it, then retry"
            )
        return {"projector": projector, "stream": stream, "skipped": versions}


def _letters_of(connection: Connection, side: ReadSide, projector: str, stream: str) -> list[DeadLetter]:
    side.plan(projector)
    letters = [d for d in ledger.dead_letters(connection, projector) if d.stream == stream]
    if not letters:
        raise NotParked(
            f"{projector}: stream {stream!r} is not parked; `outbox dead-letters list` names those that are"
        )
    return letters


def _event(connection: Connection, side: ReadSide, letter: DeadLetter) -> dict[str, Any] | None:
    """The event that parks the stream. Data that cannot be decoded may be the very reason."""
    if not letter.version:
        return None
    registry = Deferring(side.write.registry)
    event = next(iter(read_stream(connection, letter.stream, registry, after=letter.version - 1)), None)
    if event is None:
        return None
    data = None if isinstance(event.data, Unreadable) else event.data
    return {n: getattr(event, n) for n in ("version", "type", "position", "at", "id", "meta")} | {"data": data}
