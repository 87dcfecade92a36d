"""How the rows of one table become events, for as long as its columns stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outbox.capture import names
from outbox.capture.values import Convert
from outbox.errors import DatabaseError
from outbox.relay.pgoutput import Row, Unchanged

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """Columns and converters stand in the order in which rows give their values."""

    category: str
    table: str
    shape: int
    columns: tuple[str, ...]
    converters: tuple[Convert | None, ...]
    key: tuple[int, ...]
    """Places of the key's columns, in the key's order."""

    def stream(self, row: Row) -> str:
        """The stream of the row whose values these are (as text)."""
        return names.stream(self.category, self.key_of(row))

    def key_of(self, row: Row) -> list[str]:
        """The key's values as text. Raises :class:`~outbox.errors.DatabaseError` if the server left one out."""
        key = [row[place] for place in self.key]
        if not all(isinstance(value, str) for value in key):
            raise DatabaseError(f"PostgreSQL gave a change of {self.table} without its key")
        return key  # type: ignore[return-value]

    def values(self, row: Row) -> Columns:
        """The values by column, without those left out as unchanged."""
        return {
            name: value if convert is None or value is None else convert(value)  # type: ignore[arg-type]
            for name, convert, value in zip(self.columns, self.converters, row, strict=True)
            if not isinstance(value, Unchanged)
        }

    def key_values(self, row: Row) -> Columns:
        """The key's values by column."""
        return {self.columns[place]: self._converted(place, row[place]) for place in self.key}

    def holes(self, row: Row) -> tuple[str, ...]:
        """The columns left out as unchanged."""
        return tuple([n for n, value in zip(self.columns, row, strict=True) if isinstance(value, Unchanged)])

    def _converted(self, place: int, value: Any) -> Any:
        convert = self.converters[place]
        return value if convert is None or value is None else convert(value)


def form(
    category: str,
    table: str,
    shape: int,
    columns: Sequence[str],
    converters: Sequence[Convert | None],
    key: Sequence[str],
) -> Form:
    """A form whose key's columns are among ``columns``."""
    places = tuple(columns.index(name) for name in key)
    return Form(category, table, shape, tuple(columns), tuple(converters), places)


def same(one: Columns | None, other: Columns | None) -> bool:
    """Whether two states of a row are the same; no value and null are."""
    return _present(one) == _present(other)


def _present(columns: Columns | None) -> list[tuple[str, str]] | None:
    # By repr: 1, 1.0 and True are equal in Python, and three values in an event.
    return None if columns is None else sorted((n, repr(v)) for n, v in columns.items() if v is not None)
