"""Names of a package that are loaded when first used (PEP 562), so that importing the package costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, Sequence[str]], names: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], Sequence[str]]]:
    """A package's ``__getattr__`` and ``__dir__``. ``homes``: modules, and which of the package's names are theirs;
    ``names``: all that the package shows."""
    home = {name: module for module, own in homes.items() for name in own}

    def getattr_(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return getattr_, lambda: names
