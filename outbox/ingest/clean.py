"""Strings as the log takes them: no NUL, no lone surrogate, and bounded."""

from __future__ import annotations

import hashlib
import re
from typing import Final

TEXT_CHARS_MAX: Final = 20_000
"""Characters of text per entity or part: several times what an embedding model reads."""

NAME_CHARS_MAX: Final = 500
"""Characters of a name, a title, a decorator or a signature."""

KEY_CHARS_MAX: Final = 600
"""Characters of a part's key. With its stream's name it must stay below a B-tree entry's 2,704 bytes."""

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

_REFUSED: Final = re.compile("[\x00\ud800-\udfff]")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W_A-Z]+")


def clean(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """``text`` cut to ``chars_max`` characters, with U+FFFD for each character the log refuses."""
    if len(text) > chars_max:
        text = text[:chars_max]
    if text.isascii() and "\x00" not in text:
        return text
    return _REFUSED.sub(REPLACEMENT, text)


def bounded_key(key: str) -> str:
    """``key``, or its beginning and a digest of the whole if it is longer than :data:`KEY_CHARS_MAX`."""
    if len(key) <= KEY_CHARS_MAX:
        return key
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{key[: KEY_CHARS_MAX - len(digest) - 1]}~{digest}"


def words(name: str) -> str:
    """The words an identifier is made of: ``parseHTTPHeader_now`` gives ``parse HTTP header now``."""
    found = [w if w.isupper() and len(w) > 1 else w.lower() for w in _WORD.findall(name)]
    return " ".join(found)
