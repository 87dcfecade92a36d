"""Why a value was refused, and where it stands in the event."""

from __future__ import annotations

from typing import Final

KEY_SHOWN_MAX: Final = 40
"""Characters of a map's key shown in a path; more would make the error longer than a line."""

Step = str | int
"""A field's name or map's key, or an item's index."""


class Refusal(Exception):
    """Raised by the encoder at the value that is wrong; each level it passes through adds its step.

    Never leaves :mod:`outbox.codec`, which turns it into :class:`~outbox.errors.InvalidEvent`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._inner_first: list[Step] = []

    def at(self, step: Step) -> Refusal:
        """This refusal, one level further out."""
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


def _step(step: Step) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    if step.isidentifier() and len(step) <= KEY_SHOWN_MAX and step.isascii():
        return f".{step}"
    return f"[{_shown(step)}]"


def _shown(key: str) -> str:
    return ascii(key) if len(key) <= KEY_SHOWN_MAX else ascii(key[:KEY_SHOWN_MAX]) + "..."
