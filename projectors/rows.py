"""The projection ``rows``: tables captured by ``outbox capture``, kept as rows.

A row's key is its stream, ``TABLE-<primary key>``; its columns are those of the table, the key's among them. Null
columns are left out (no store tells a null from an absence in the same way), and bytes are written as PostgreSQL does,
``\\x`` and hexadecimal digits, since JSON has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outbox.event import Event
from projectors.record import Record, Row

Columns = Mapping[str, Any]

RESETTING: Final = frozenset({"row.inserted", "row.updated", "row.deleted"})
"""Types of events behind which nothing that came before matters."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``categories``: the captured tables (``orders``; outside of the schema public ``sales.orders``)."""

    categories: Sequence[str]

    def fold(self, state: Columns | None, event: Event) -> Columns | None:
        """The row as it is after the event; events of other types leave it as it is."""
        match event.type:
            case "row.inserted" | "row.updated":
                return {name: _plain(value) for name, value in event.data["columns"].items() if value is not None}
            case "row.deleted":
                return None
        return state

    def resets(self, stream: str, version: int, type: str) -> bool:  # noqa: A002  # the protocol's name for it
        """Each of them says the whole row."""
        del stream, version
        return type in RESETTING

    def records(self, stream: str, state: Columns | None) -> Iterable[Record]:
        """The one row, while there is one."""
        return () if state is None else (Row(stream, state),)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return [_plain(item) for item in value] if isinstance(value, list) else value
