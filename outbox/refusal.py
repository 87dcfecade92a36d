"""Why a value was refused, and where it stands in the event."""

from __future__ import annotations

from typing import Final

KEY_SHOWN_MAX: Final = 40
"""Characters of a map's key shown in a path; more would make the error longer than a line."""


class Refusal(Exception):
    """Raised by the encoder at the value that is wrong; each level it passes through adds its step.

    Never leaves :mod:`outbox.codec`, which turns it into :class:`~outbox.errors.InvalidEvent`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._inner_first: list[object] = []

    def at(self, step: object) -> Refusal:
        """This refusal, one level further out: a field's name, a map's key or an item's index."""
        self._inner_first.append(step)
        return self

    @property
    def depth(self) -> int:
        """How many levels inside the value it stands."""
        return len(self._inner_first)

    @property
    def field(self) -> str | None:
        """The path from the event's root, such as ``parts[3].properties.price``; None for the root itself."""
        return "".join(map(_step, reversed(self._inner_first))).removeprefix(".") or None


def _step(step: object) -> str:
    if isinstance(step, str) and step.isidentifier() and len(step) <= KEY_SHOWN_MAX and step.isascii():
        return f".{step}"
    return f"[{_shown(step)}]"


def _shown(step: object) -> str:
    if isinstance(step, str):
        return ascii(step) if len(step) <= KEY_SHOWN_MAX else ascii(step[:KEY_SHOWN_MAX]) + "..."
    # Any other key is an error in itself; only a small number is sure to have a short text.
    return str(step) if isinstance(step, int) and abs(step) < 2**63 else type(step).__name__
