"""How often what an ended attempt leaves is collected."""

import gc
import time

from outbox import garbage


def test_after_a_long_collection_the_next_one_comes_later(monkeypatch):
    now, collected = [100.0], []

    def collect():
        collected.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(gc, "collect", collect)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(garbage, "_rests_until", [0.0])
    for later_s in (0.0, 2 * garbage.SHARE - 1.0, 1.0):
        now[0] += later_s
        garbage.collect_ended()
    assert collected == [100.0, 102.0 + 2 * garbage.SHARE]
