"""Through an outage of hours: who tries again does so ever less often, and soon all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from outbox.capture.capture import Capture, CaptureSettings
from outbox.codec import default_registry
from outbox.relay.relay import Relay, RelaySettings
from outbox.rests import FACTOR_MAX, Rests
from projectors.entity import EntityDocuments
from projectors.pipeline import Plan
from projectors.resilience import Resilience
from projectors.runner import Runner
from projectors.session import Stations
from tests.relaying import Recorder

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
FIRST_S = 1_000.0
"""No attempt of a test lasts as long as eight of these."""


class Stop(threading.Event):
    """Notes each rest instead of resting, and is set by the sixth."""

    def __init__(self) -> None:
        super().__init__()
        self.rests: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.rests.append(timeout)
        if len(self.rests) == 6:
            self.set()
        return self.is_set()


def unreached(*_: object) -> Any:
    raise AssertionError


def relay(stop: threading.Event) -> None:
    Relay(NOWHERE, Recorder, RelaySettings(retry_s=FIRST_S)).run(stop)


def capture(stop: threading.Event) -> None:
    Capture(NOWHERE, default_registry(), CaptureSettings(retry_s=FIRST_S)).run(stop)


def projector(stop: threading.Event) -> None:
    plan = Plan("documents", "memory", EntityDocuments(("text",)), ("outbox.text",))
    stations = Stations(NOWHERE, Recorder, unreached, unreached, default_registry(), Resilience(), rest_s=FIRST_S)
    Runner(plan, stations, unreached).run(stop)


@pytest.mark.parametrize("run", [relay, capture, projector])
def test_rests_between_failures_double_up_to_a_bound(run: Callable[[threading.Event], None]) -> None:
    stop = Stop()
    run(stop)
    assert stop.rests == [FIRST_S * n for n in (1, 2, 4, 8, 8, 8)]


def test_an_attempt_that_got_somewhere_begins_anew() -> None:
    rests = Rests(1e-6)
    for _ in range(5):
        rests.failed()
    until = time.monotonic() + 2e-6 * FACTOR_MAX
    rests.begin()
    while time.monotonic() < until:
        pass
    assert rests.failed() == 1e-6
