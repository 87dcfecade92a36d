"""Retry, circuit breaker and adaptive batches: each a wrapper round a sink, none of them inside one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import tenacity

from outbox.errors import RecordsRefused, StoreUnavailable
from outbox.metrics import APPLY_SECONDS, BREAKER_OPEN, CHANGES_APPLIED, STORE_ERRORS
from projectors.record import Change, Stored
from projectors.sinks.protocol import Sink

SHARE_MIN: Final = 16
"""The smallest batch that adaptation goes down to."""


@dataclass(frozen=True, slots=True)
class Resilience:
    """Bounds of the wrappers. Times in seconds, batches in changes."""

    attempts: int = 4
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    retry_after_max_s: float = 30.0
    """A store that asks to be left alone for longer is asked again after this."""
    breaker_failures: int = 3
    breaker_rest_s: float = 2.0
    batch: int = 500
    batch_max: int = 2_000
    apply_target_s: float = 1.0


class Pace:
    """How many changes the store takes at once; outlives the sessions, or a slow store would never be learnt."""

    def __init__(self, settings: Resilience) -> None:
        self._settings = settings
        self.size = settings.batch

    def took(self, share: int, took_s: float) -> None:
        """A share was applied in this time: additive increase, multiplicative decrease."""
        if took_s > self._settings.apply_target_s:
            self.shrink()
        elif share == self.size:
            self.size = min(self.size + self._settings.batch // 10 + 1, self._settings.batch_max)

    def shrink(self) -> None:
        """The store failed: it may be the size."""
        self.size = max(self.size // 2, min(SHARE_MIN, self._settings.batch))


class Wrapped:
    """A sink that passes everything on; the wrappers below change ``apply`` alone."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def prepare(self, generation: str) -> None:
        self._sink.prepare(generation)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        self._sink.apply(generation, changes)

    def scan(self, generation: str, keys: Sequence[str] | None = None) -> Iterator[Stored]:
        return self._sink.scan(generation, keys)

    def switch(self, generation: str) -> None:
        self._sink.switch(generation)

    def drop(self, generation: str) -> None:
        self._sink.drop(generation)


class Measured(Wrapped):
    """Counts and times what reaches the store."""

    def __init__(self, sink: Sink, projector: str) -> None:
        super().__init__(sink)
        self._changes = CHANGES_APPLIED.labels(projector)
        self._errors = STORE_ERRORS.labels(projector)
        self._seconds = APPLY_SECONDS.labels(projector)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        with self._seconds.time():
            try:
                self._sink.apply(generation, changes)
            except StoreUnavailable:
                self._errors.inc()
                raise
        self._changes.inc(len(changes))


class Breaker(Wrapped):
    """Leaves a failing store alone for a while, then lets one batch try."""

    def __init__(self, sink: Sink, settings: Resilience, projector: str) -> None:
        super().__init__(sink)
        self._settings = settings
        self._failures = 0
        self._open_until = 0.0
        self._gauge = BREAKER_OPEN.labels(projector)

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        rest_s = self._open_until - time.monotonic()
        if rest_s > 0:
            raise StoreUnavailable(f"the store failed {self._failures} times and is left alone", rest_s)
        try:
            self._sink.apply(generation, changes)
        except StoreUnavailable:
            self._failures += 1
            if self._failures >= self._settings.breaker_failures:
                self._open_until = time.monotonic() + self._settings.breaker_rest_s
                self._gauge.set(1)
            raise
        except RecordsRefused:
            self._close()  # it answered
            raise
        self._close()

    def _close(self) -> None:
        self._failures = 0
        self._gauge.set(0)


class Adaptive(Wrapped):
    """Cuts batches to a size the store takes in good time."""

    def __init__(self, sink: Sink, pace: Pace) -> None:
        super().__init__(sink)
        self._pace = pace

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        refused: dict[str, str] = {}
        done = 0
        while done < len(changes):
            share = changes[done : done + self._pace.size]
            started = time.monotonic()
            try:
                self._sink.apply(generation, share)
            except StoreUnavailable:
                self._pace.shrink()
                raise
            except RecordsRefused as error:
                refused |= error.reasons
            done += len(share)
            self._pace.took(len(share), time.monotonic() - started)
        if refused:
            raise RecordsRefused(refused)


class Retrying(Wrapped):
    """Tries again while the store is unavailable: exponential back-off with jitter, bounded attempts.

    It stands outermost, so that a batch too large for the store comes back in smaller shares. Shares that
    were applied come again with it; the version guard passes over them.
    """

    def __init__(self, sink: Sink, settings: Resilience, stop: threading.Event) -> None:
        super().__init__(sink)
        self._settings = settings
        self._backoff = tenacity.wait_exponential_jitter(
            initial=settings.backoff_s, max=settings.backoff_max_s, jitter=settings.backoff_s
        )
        self._retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(settings.attempts), tenacity.stop_when_event_set(stop)),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        self._retry(self._sink.apply, generation, changes)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, StoreUnavailable) else None
        return max(self._backoff(state), min(asked or 0.0, self._settings.retry_after_max_s))


def resilient(
    sink: Sink, projector: str, settings: Resilience, stop: threading.Event, pace: Pace | None = None
) -> Sink:
    """The wrappers in their order: a batch is retried, cut into shares, and each share stands behind the breaker."""
    measured = Breaker(Measured(sink, projector), settings, projector)
    return Retrying(Adaptive(measured, pace or Pace(settings)), settings, stop)
