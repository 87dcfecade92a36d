"""Texts to vectors. The default needs no model, no network and no training: feature hashing.

An embedder must give the same vector for the same text for as long as a generation of a store lives:
``verify`` recomputes vectors and compares them.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from outbox.database import first_line
from outbox.errors import OutboxError, SettingsError, StoreUnavailable
from outbox.extras import how_to_install

Vectors = npt.NDArray[np.float32]
"""One row a text, each of length 1 (L2)."""

DIMENSIONS: Final = 256
"""Of the hashing embedder. More tell texts apart better, at the cost of every store's size."""

TEXT_MAX: Final = 1 << 18
"""Characters read of one text; a vector of a longer one would tell nothing more."""

BATCH_TEXTS: Final = 1 << 10
BATCH_CHARACTERS: Final = 1 << 20
"""Bounds of one vectorised step; a character costs about 40 bytes of memory."""

CACHE_TOKENS: Final = 1 << 16
"""Distinct tokens remembered by the process, about 300 bytes each."""

_TOKEN: Final = re.compile(r"\w{1,64}")
_PIECE: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\x00-\x7f]+")

_WORD, _PAIR, _TRIGRAM, _SHORT = range(4)
_WEIGHTS: Final = np.array([1024, 256, 256, 512], dtype=np.float64)
"""Of a word, of two neighbours, of three characters and of a short word (mostly "of", "the", "is")."""

SHORT_WORD: Final = 3
"""Characters; the shortest words are the commonest in most languages, and there is no corpus to count in."""

_HASH_BITS: Final = 40
_KIND_BITS: Final = 2
_ROW_SHIFT: Final = np.uint64(_HASH_BITS + _KIND_BITS)
_HASH_MASK: Final = (1 << _HASH_BITS) - 1
_PAIR_FACTOR: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio (Knuth, TAOCP 3, section 6.4): makes a pair's hash depend on its order."""


class Embedder(Protocol):
    """Turns texts into vectors. Safe to share between threads. What it raises is said and tried again, as if the store
    were away, but for TypeError and ValueError: by these it says that it is wrong."""

    @property
    def dimensions(self) -> int:
        """Length of every vector."""

    @property
    def name(self) -> str:
        """Says which vectors these are: two embedders of one name give equal vectors."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """A float32 array of shape ``(len(texts), dimensions)`` whose rows have length 1."""


class _Token(NamedTuple):
    features: npt.NDArray[np.uint64]
    """Hash and kind of each feature, a feature as often as it occurs."""
    first: int
    last: int
    """Hashes of the token's first and last word, for the pairs across tokens."""


class HashingEmbedder:
    """Words, their pieces, pairs of neighbours and trigrams of characters, hashed into signed buckets.

    Feature hashing as in Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (2009):
    the sign makes collisions cancel out on average. A feature that occurs n times counts sqrt(n).
    The vectors are equal bit by bit on every platform, because all sums are of whole numbers, and for
    all characters of Unicode 14 (Python 3.11) on every version of Python. A text without a word gives
    the first unit vector.
    """

    def __init__(self, dimensions: int = DIMENSIONS) -> None:
        if not 8 <= dimensions <= 65_536:
            raise SettingsError(f"embedder: hashing:{dimensions}: dimensions must be from 8 to 65536")
        self.dimensions = dimensions
        self.name = f"hashing:{dimensions}"

    def __call__(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start, end in _batches(texts):
            vectors[start:end] = self._embed(texts[start:end])
        return vectors

    def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        shape = (len(texts), self.dimensions)
        features, counts = np.unique(_features(texts), return_counts=True)
        hashes = (features >> np.uint64(_KIND_BITS)) & np.uint64(_HASH_MASK)
        weights = np.rint(_WEIGHTS[(features & np.uint64(3)).astype(np.intp)] * np.sqrt(counts))
        signed = np.where(hashes & np.uint64(1), weights, -weights)
        buckets = (features >> _ROW_SHIFT) * np.uint64(shape[1]) + (hashes >> np.uint64(1)) % np.uint64(shape[1])
        sums = np.bincount(buckets.astype(np.intp), signed, minlength=shape[0] * shape[1])
        return unit_rows(sums.astype(np.float64).reshape(shape))


def unit_rows(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each row divided by its length; a row of zeros becomes the first unit vector."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    empty = lengths == 0
    unit: npt.NDArray[np.float64] = rows / np.where(empty, 1, lengths)[:, None]
    unit[empty, 0] = 1
    return unit


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of texts, each within both bounds (or one text alone)."""
    start = characters = 0
    for index, text in enumerate(texts):
        size = min(len(text), TEXT_MAX)
        if index > start and (index - start == BATCH_TEXTS or characters + size > BATCH_CHARACTERS):
            yield start, index
            start, characters = index, 0
        characters += size
    if start < len(texts):
        yield start, len(texts)


def _features(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """All features of all texts: the row above, then the hash, then the kind."""
    tokens: list[_Token] = []
    tokens_of: list[int] = []
    for text in texts:
        found = _TOKEN.findall(normalised(text))
        tokens += map(_token, found)
        tokens_of.append(len(found))
    if not tokens:
        return np.empty(0, dtype=np.uint64)
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), tokens_of) << _ROW_SHIFT
    sizes = [len(token.features) for token in tokens]
    single = np.concatenate([token.features for token in tokens]) | np.repeat(rows, sizes)
    return np.concatenate([single, _neighbours(tokens, rows)])


def _neighbours(tokens: Sequence[_Token], rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The pairs of words that stand on both sides of a gap between two tokens of one text."""
    last = np.array([token.last for token in tokens[:-1]], dtype=np.uint64)
    first = np.array([token.first for token in tokens[1:]], dtype=np.uint64)
    pairs = _packed(last * np.uint64(_PAIR_FACTOR) + first, _PAIR) | rows[:-1]
    same_text: npt.NDArray[np.uint64] = pairs[rows[:-1] == rows[1:]]
    return same_text


def _packed(hashes: npt.NDArray[np.uint64], kind: int) -> npt.NDArray[np.uint64]:
    """The upper bits of the hashes, with the kind below them."""
    return (hashes >> np.uint64(64 - _HASH_BITS)) << np.uint64(_KIND_BITS) | np.uint64(kind)


def normalised(text: str) -> str:
    """The text as far as it is read, in compatibility form (Unicode NFKC)."""
    text = text[:TEXT_MAX]
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


@lru_cache(maxsize=CACHE_TOKENS)
def _token(token: str) -> _Token:
    pieces = [piece.lower() for part in token.split("_") for piece in _PIECE.findall(part)] or [token.lower()]
    words = pieces if len(pieces) == 1 else [*pieces, "".join(pieces)]
    hashes = [_hash(word) for word in pieces]
    features = [
        *(_pack(_hash(word), _SHORT if len(word) <= SHORT_WORD else _WORD) for word in words),
        *(_pack((one * _PAIR_FACTOR + two) & 0xFFFF_FFFF_FFFF_FFFF, _PAIR) for one, two in pairwise(hashes)),
        *(_pack(_hash(trigram), _TRIGRAM) for piece in pieces for trigram in _trigrams(piece)),
    ]
    return _Token(np.array(features, dtype=np.uint64), hashes[0], hashes[-1])


def _pack(value: int, kind: int) -> int:
    return value >> (64 - _HASH_BITS) << _KIND_BITS | kind


def _trigrams(word: str) -> Iterator[str]:
    """Three characters at a time, the word's ends marked by characters that no word has."""
    marked = f"<{word}>"
    return (marked[i : i + 3] for i in range(len(marked) - 2))


def _hash(text: str) -> int:
    # "surrogatepass": an embedder has no say in which texts exist; the codec has refused surrogates long before.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _asked(function: Callable[[Sequence[str]], Any], name: str, texts: Sequence[str]) -> Any:
    """What the function gives. It may ask a service, whose client raises errors of its own: whatever it raises is for
    the projector to try again, but for what tells that it is no function of texts."""
    try:
        return function(texts)
    except (OutboxError, TypeError, ValueError):
        raise
    except Exception as error:
        raise StoreUnavailable(f"embedder {name}: {type(error).__name__}: {first_line(error)}") from error


class _Complete:
    """An embedder that says its name and dimensions itself."""

    def __init__(self, made: Embedder) -> None:
        self._made = made
        self.dimensions = made.dimensions
        self.name = made.name

    def __call__(self, texts: Sequence[str]) -> Vectors:
        try:
            vectors: Vectors = _asked(self._made, self.name, texts)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"embedder {self.name}: {type(error).__name__}: {first_line(error)}") from error
        return vectors


class FunctionEmbedder:
    """Any function from texts to rows of numbers, its rows brought to length 1 and checked."""

    def __init__(self, function: Callable[[Sequence[str]], Any], name: str) -> None:
        """Calls the function once, to learn the dimensions. Raises SettingsError if it gives no vector,
        StoreUnavailable if it raises."""
        self._function = function
        self.name = name
        self.dimensions = 0
        self.dimensions = self([name]).shape[1]

    def __call__(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        try:
            rows = np.asarray(_asked(self._function, self.name, texts), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"embedder {self.name}: gives no rows of numbers: {error}") from error
        width = self.dimensions or (rows.shape[1] if rows.ndim == 2 else 0)
        if rows.shape != (len(texts), width) or not width:
            raise SettingsError(f"embedder {self.name}: gave an array of {rows.shape} for {len(texts)} text(s)")
        if not np.isfinite(rows).all():
            raise SettingsError(f"embedder {self.name}: gave NaN or infinity")
        return unit_rows(rows).astype(np.float32)


def embedder(setting: str | Callable[[Sequence[str]], Any]) -> Embedder:
    """The embedder that a setting names, or a function as one.

    ``hashing``, ``hashing:384`` (dimensions), ``sentence-transformers:MODEL`` (the extra of that name),
    ``module.path:name`` of a function, an embedder or an embedder class; or one of these itself.
    Raises :class:`~outbox.errors.SettingsError`.
    """
    if not isinstance(setting, str):
        return _embedder_of(setting, getattr(setting, "__qualname__", type(setting).__qualname__))
    kind, _, rest = setting.partition(":")
    if kind == "hashing":
        return HashingEmbedder(_dimensions(setting, rest) if rest else DIMENSIONS)
    if kind == "sentence-transformers":
        return _sentence_transformer(rest)
    return _embedder_of(_imported(setting), setting)


def _embedder_of(function: Any, name: str) -> Embedder:
    made = function() if isinstance(function, type) else function
    if isinstance(getattr(made, "dimensions", None), int) and isinstance(getattr(made, "name", None), str):
        return _Complete(made)
    return FunctionEmbedder(made, name)


def _dimensions(setting: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise SettingsError(f"embedder: {setting!r}: write hashing:<dimensions>, such as hashing:384")
    return int(text)


def _imported(setting: str) -> Any:
    module, _, name = setting.partition(":")
    if not module or not name:
        raise SettingsError(
            f"embedder: {setting!r} is none of hashing, hashing:<dimensions>, sentence-transformers:<model> "
            "and <module>:<name>"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"embedder: {setting!r} cannot be imported: {error}") from error
    if not callable(found):
        raise SettingsError(f"embedder: {setting!r} is not callable")
    return found


def _sentence_transformer(model: str) -> Embedder:
    if not model:
        raise SettingsError("embedder: write sentence-transformers:<model>, such as all-MiniLM-L6-v2")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SettingsError(
            f"embedder: sentence-transformers:{model} needs an extra: {how_to_install('sentence-transformers')}"
        ) from error
    try:
        loaded = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"embedder: model {model!r} cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    return FunctionEmbedder(lambda texts: loaded.encode(list(texts)), f"sentence-transformers:{model}")
