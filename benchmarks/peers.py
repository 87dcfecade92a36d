"""The other software that is measured beside ours, where it is installed: the dependency group ``bench``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from benchmarks.measuring import say


def installed(module: str) -> bool:
    return find_spec(module) is not None


def required(*modules: str) -> None:
    """End the process with one line if one of them is not there."""
    missing = [module for module in modules if not installed(module)]
    if missing:
        say(f"not installed: {', '.join(missing)}; `make bench` installs what is measured beside ours")
        sys.exit(1)
