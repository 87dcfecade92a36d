"""How often Python looks for objects that only refer to each other."""

from __future__ import annotations

import gc
from typing import Final

OBJECTS: Final = 500_000
"""That may have come into being since the last look; Python's own bound is 700. A page of 5,000 rows is 40,000
objects that refer to nothing but what is older: to look at them again and again took a third of a relay's time.
A projector's two batches in hand and the states it keeps are 200,000 to 300,000."""


def collect_rarely() -> None:
    """For a process that is ours alone. What refers to itself, mostly exceptions, waits a little longer."""
    gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])
