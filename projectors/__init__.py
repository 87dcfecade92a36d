"""The read side: projections of the log, kept in any number of stores, and questions to them.

Names are loaded when first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projectors.app import App, running
    from projectors.projection import Projection
    from projectors.query.protocol import Hit, Neighbour, Path
    from projectors.query.search import Search
    from projectors.record import Change, Document, Edge, Node, Row, Stored, Value, Vector
    from projectors.sinks.protocol import Sink

_HOMES = {
    "projectors.app": ("App", "running"),
    "projectors.projection": ("Projection",),
    "projectors.query.protocol": ("Hit", "Neighbour", "Path"),
    "projectors.query.search": ("Search",),
    "projectors.record": ("Change", "Document", "Edge", "Node", "Row", "Stored", "Value", "Vector"),
    "projectors.sinks.protocol": ("Sink",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "App",
    "Change",
    "Document",
    "Edge",
    "Hit",
    "Neighbour",
    "Node",
    "Path",
    "Projection",
    "Row",
    "Search",
    "Sink",
    "Stored",
    "Value",
    "Vector",
    "running",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
