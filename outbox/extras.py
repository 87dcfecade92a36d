"""How to install what is left out by default."""

from __future__ import annotations


def how_to_install(extras: str) -> str:
    """Extras, by name, with commas between them. From a checkout: PyPI's ``outbox`` is something else."""
    return f"in a checkout of this project run `pip install '.[{extras}]'`"
