"""A :class:`~projectors.record.Vector` as a Chroma row and back, without losing a bit.

Chroma bends some of what it is given, so that each is stored in a form it keeps:

* **Vectors.** In a collection of space ``cosine`` Chroma scales each vector to length one in float32 and gives
  that back, rounded. Here the collection's space is ``ip`` and the sink itself scales; on vectors of length one
  the inner product is the cosine. A vector that comes with length one (most embedders' do) is stored as it
  is; of any other the original is kept beside it, as ``_e``.
* **Metadata.** Chroma takes no nested, empty or None values and no integer beyond 64 bits; it loses the sign of
  -0.0 and the last bit of many floats (its log is JSON, read back without exact rounding). Plain values are
  stored under their own names, where Chroma can filter by them; if any value is not plain, ``_m`` has them all.
* ``_g`` is what the guard and verify need of a record: its version, its mark (:mod:`projectors.marks`) with 31 bits of
  a hash of text and vector above it, and its stream, apart by blanks. One text, since each name of each record is a
  row to Chroma, in two indexes. Rows written before had a name for each: ``_v``, ``_h``, ``_s``; and ``_b``, a slice.
  The user's names that begin with ``_`` are only in ``_m``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from projectors.marks import MARK_BITS, mark_of, shortened
from projectors.record import Change, Vector

GUARD: Final = "_g"
METADATA: Final = "_m"
EMBEDDING: Final = "_e"
VERSION: Final = "_v"
STREAM: Final = "_s"
MARK: Final = "_h"

Floats = npt.NDArray[np.float32]

UNIT_WITHIN: Final = 1e-6
"""How far from one a squared length may be: more than float32's rounding, less than any score's meaning."""

NOT_NAMES: Final = ("_", "$", "#", "chroma:")
"""Ours; those that Chroma refuses; and those it keeps for itself."""

INT64: Final = 2**63

EXACT_DIGITS: Final = 15
"""Decimals of up to 15 digits times 10^±22 become the nearest float by one exact division or multiplication
(Clinger, "How to read floating point numbers accurately", 1990): even a parser that rounds carelessly is right."""
EXACT_EXPONENT: Final = 22


class Guard(NamedTuple):
    """What a row says of its record."""

    version: int
    stream: str
    both: int | None
    """The mark, and above it 31 bits of the content; None of a row that somebody wrote without."""

    @property
    def mark(self) -> int | None:
        """As :func:`projectors.marks.mark_of` made it."""
        return None if self.both is None else shortened(self.both)

    @property
    def content(self) -> int:
        """31 bits of text and vector; 0 if they are not known."""
        return (self.both or 0) >> MARK_BITS


@dataclass(frozen=True, slots=True)
class ChromaRow:
    """What Chroma stores under one id."""

    id: str
    embedding: Floats
    document: str
    metadata: dict[str, Any]
    content: int
    """31 bits of its text and vector."""

    @property
    def size(self) -> int:
        """Bytes in a request, about: a float32 is up to 20 characters of JSON, a character up to 6 bytes."""
        texts = len(self.document) + sum(len(v) for v in self.metadata.values() if isinstance(v, str))
        return 20 * len(self.embedding) + 6 * texts + 32 * len(self.metadata) + len(self.id)

    def holds(self, embedding: Sequence[float]) -> bool:
        """Whether its vector is this one, bit for bit as float32."""
        return bool(np.asarray(embedding, np.float32).tobytes() == self.embedding.tobytes())


def encode(change: Change) -> ChromaRow:
    """The row of a change that has a record. Raises ``TypeError`` if it is no vector, ``ValueError`` if it
    has no embedding, or one that is not finite."""
    record = change.record
    if not isinstance(record, Vector):
        raise TypeError(f"chroma takes vectors, not {type(record).__name__}")
    if record.embedding is None or not len(record.embedding):
        raise ValueError("the record has no embedding")
    given = np.asarray(record.embedding, dtype=np.float32)
    stored = unit(given)
    mark = mark_of(change)
    content = _content(record.text, stored)
    both = content << MARK_BITS | mark.mark if mark else None
    metadata = _plain(record.metadata) | {GUARD: guard_text(change.version, change.stream, both)}
    if not all(_is_plain(name, value) for name, value in record.metadata.items()):
        metadata[METADATA] = orjson.dumps(dict(record.metadata)).decode()
    if stored is not given:
        metadata[EMBEDDING] = base64.b64encode(given.astype("<f4").tobytes()).decode()
    return ChromaRow(change.key, stored, record.text, metadata, content)


def decode(key: str, embedding: Sequence[float], document: str | None, metadata: Mapping[str, Any]) -> Vector:
    """The record that a row was made from."""
    kept = metadata.get(EMBEDDING)
    vector = np.asarray(embedding, np.float32) if kept is None else np.frombuffer(base64.b64decode(kept), "<f4")
    return Vector(key, document or "", user_metadata(metadata), vector.tolist())


def guard_text(version: int, stream: str, both: int | None = None) -> str:
    """What stands under ``_g``; see :class:`Guard`."""
    return f"{version} {'' if both is None else both} {stream}"


def guard_in(metadata: Mapping[str, Any] | None) -> Guard:
    """What a row says of its record; of version 0 if there is no row, or it was written by somebody else."""
    found = metadata or {}
    if GUARD not in found:
        return Guard(int(found.get(VERSION) or 0), found.get(STREAM) or "", found.get(MARK))
    try:
        version, both, stream = str(found[GUARD]).split(" ", 2)
        return Guard(int(version), stream, int(both) if both else None)
    except ValueError:
        return Guard(0, "", None)


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the old metadata the new one: what is new or other, and None for what is gone.

    The guard is always among it: Chroma takes no empty metadata.
    """
    other = {name: value for name, value in new.items() if name == GUARD or not _same(old.get(name), value)}
    return other | dict.fromkeys(old.keys() - new.keys())


def _same(old: Any, new: Any) -> bool:
    return type(old) is type(new) and bool(old == new)  # no -0.0: it is in `_m`


def _content(text: str, vector: Floats) -> int:
    hashed = hashlib.blake2b(vector.astype("<f4").tobytes(), digest_size=4)
    hashed.update(text.encode())
    return int.from_bytes(hashed.digest()) >> 1


def user_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The record's own metadata, out of a row's."""
    if METADATA in metadata:
        return dict(orjson.loads(metadata[METADATA]))
    return {name: value for name, value in metadata.items() if not name.startswith("_")}


def unit(vector: Floats) -> Floats:
    """The vector scaled to length one; the very same object if it has that length, or none, already.

    Raises ``ValueError`` if a component is infinite or no number.
    """
    if not np.isfinite(vector).all():
        raise ValueError("the vector has a component that is no finite number")
    squared = float(np.dot(vector.astype(np.float64), vector.astype(np.float64)))
    if squared == 0 or abs(squared - 1) <= UNIT_WITHIN:
        return vector
    return (vector / np.float64(squared) ** 0.5).astype(np.float32)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if _is_plain(name, value)}


def _is_plain(name: str, value: Any) -> bool:
    """Whether Chroma gives this very value back under this very name."""
    if not name or name.startswith(NOT_NAMES):
        return False
    if isinstance(value, float):
        return _is_exact(value)
    if isinstance(value, int):
        return -INT64 <= value < INT64
    return isinstance(value, str)


def _is_exact(value: float) -> bool:
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    if not isinstance(exponent, int) or repr(value) == "-0.0":  # an exponent that is no number: infinity or NaN
        return False
    return len(digits) <= EXACT_DIGITS and abs(exponent) <= EXACT_EXPONENT
