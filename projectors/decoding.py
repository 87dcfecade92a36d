"""Events whose data this process cannot read fail where they are used, as part of their stream.

A type or schema that is newer than this process, or corrupt bytes, must not end the reading of a page in
which a thousand other streams stand. So the data of such an event is an object that raises when a projection
looks into it: its stream is parked there. A projection that does not care for the type never looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Never, cast

from outbox.codec import Registry
from outbox.errors import InvalidEvent


class Unreadable(Mapping[str, Any]):
    """Data that could not be decoded; every look at it raises the reason."""

    def __init__(self, reason: InvalidEvent) -> None:
        self._reason = reason

    def __getitem__(self, key: str) -> Never:
        raise self._reason

    def __iter__(self) -> Iterator[str]:
        raise self._reason

    def __len__(self) -> int:
        raise self._reason

    def __contains__(self, key: object) -> bool:
        raise self._reason

    def __eq__(self, other: object) -> bool:
        raise self._reason

    __hash__ = None  # type: ignore[assignment]


class Deferring(Registry):
    """A registry that decodes as the given one does, and puts errors off until the data is used."""

    def __init__(self, registry: Registry) -> None:  # the parent's state is the given registry's
        self._registry = registry

    def decode(self, type: str, data: bytes) -> dict[str, Any]:  # noqa: A002  # the parent's name for it
        try:
            return self._registry.decode(type, data)
        except InvalidEvent as error:
            return cast("dict[str, Any]", Unreadable(error))
