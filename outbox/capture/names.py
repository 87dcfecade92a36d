"""Names: the category of a table, the stream of a row, the id of an event. Each is injective and never changes."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from typing import Final

from outbox.errors import SettingsError
from outbox.event import STREAM_BYTES_MAX, STREAM_LENGTH_MAX

CATEGORY: Final = re.compile(r"[A-Za-z0-9._]{1,200}")
SPECIAL: Final = frozenset("%,#")
"""Written as %XX in the name of a stream: ``,`` stands between the columns of a key, ``#`` before a record's part."""
_SPACE: Final = uuid.UUID("3c6f7c0e-54a5-5a0c-9d0f-6f7574626f78")
"""Namespace of the events' ids (RFC 9562, version 5)."""


def category(schema: str, table: str) -> str:
    """``table``, or ``schema.table`` outside of ``public``. Raises :class:`~outbox.errors.SettingsError`."""
    name = table if schema == "public" else f"{schema}.{table}"
    if not CATEGORY.fullmatch(name):
        raise SettingsError(
            f"table {schema}.{table} cannot be captured: streams are named after it, and {name!r} holds something"
            " other than ASCII letters, digits, '.' and '_', or is too long"
        )
    return name


def stream(category: str, key: Sequence[str]) -> str:
    """The stream of the row with these key values, given as PostgreSQL's text."""
    name = f"{category}-{','.join([_plain(part) for part in key])}"
    if len(name) <= STREAM_LENGTH_MAX and len(name.encode()) <= STREAM_BYTES_MAX:
        return name
    # No other key is written with "%~".
    return f"{category}-%~{hashlib.sha256(name.encode()).hexdigest()}"


def change_id(origin: str, lsn: int, ordinal: int) -> uuid.UUID:
    """The id of a change's event: the same whenever the change is read. ``origin`` names source, capture and slot."""
    return uuid.uuid5(_SPACE, f"{origin}/{lsn}/{ordinal}")


def member_id(origin: str, lsn: int, ordinal: int, stream: str) -> uuid.UUID:
    """The id of one of the many events that a change (a truncation) or, with ordinal 0, a snapshot means."""
    return uuid.uuid5(_SPACE, f"{origin}/{lsn}/{ordinal}/{stream}")


def description_id(origin: str, category: str, shape: int) -> uuid.UUID:
    """The id of a table's description."""
    return uuid.uuid5(_SPACE, f"{origin}/shape/{category}/{shape}")


def _plain(part: str) -> str:
    if part.isprintable() and SPECIAL.isdisjoint(part):
        return part
    return "".join(c if c.isprintable() and c not in SPECIAL else _percent(c) for c in part)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
