"""How often Python looks for objects that only refer to each other."""

from __future__ import annotations

import gc
import math
import time
from typing import Final

OBJECTS: Final = 500_000
"""That may have come into being since the last look; Python's own bound is 700. A page of 5,000 rows is 40,000
objects that refer to nothing but what is older: to look at them again and again took a third of a relay's time.
A projector's two batches in hand and the states it keeps are 200,000 to 300,000."""

SHARE: Final = 20
"""The collector goes through all that there is, and every thread waits: then so many times as long goes by before it is
asked for again."""

_rests_until: Final = [-math.inf]


def collect_rarely() -> None:
    """For a process that is ours alone. What refers to itself, mostly exceptions, waits a little longer."""
    gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])


def collect_ended() -> None:
    """Free what an attempt that is over still holds, before the next one takes as much.

    An error keeps the frames that it has come through, and those keep pages, batches and states; a future, a retry or a
    frame that keeps the error in turn makes a circle of it. Python would look for it after so many new *objects*, and a
    few of them may be many megabytes. To be called where the error itself is forgotten: behind its ``except``.
    """
    began = time.monotonic()
    if began < _rests_until[0]:
        return
    gc.collect()
    ended = time.monotonic()
    _rests_until[0] = ended + SHARE * (ended - began)
