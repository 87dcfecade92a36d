"""Retry, circuit breaker and adaptive batches: each a wrapper round a sink, none of them inside one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

import tenacity

from outbox.errors import RecordsRefused, StoreUnavailable
from outbox.metrics import APPLY_SECONDS, BREAKER_OPEN, CHANGES_APPLIED, STORE_ERRORS
from projectors.record import Change, Stored
from projectors.sinks.protocol import Sink

P = ParamSpec("P")
R = TypeVar("R")

SHARE_MIN: Final = 16
"""The smallest share that adaptation goes down to."""

GROWTH: Final = 50
"""A share grows by this part of the configured batch: slowly, since each failure costs a back-off."""

QUICK: Final = 3
"""A share that took less than this part of the target may be doubled and still be in time."""


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

    @property
    def messages(self) -> int:
        """How many messages are taken at once by who is behind, if each asks for one change or less: of those of one
        key only the last is written."""
        return max(self.batch, self.batch_max)


class Pace:
    """How many changes the store takes at once; outlives the sessions, or a slow store would never be learnt."""

    def __init__(self, settings: Resilience) -> None:
        self._settings = settings
        self._starting = True
        self.size = settings.batch

    def took(self, share: int, took_s: float) -> None:
        """A share was applied in this time: additive increase, multiplicative decrease; and doubling at first, for as
        long as the store is quick ("slow start": Jacobson, "Congestion Avoidance and Control", 1988)."""
        if took_s > self._settings.apply_target_s:
            self.shrink()
        elif share == self.size:
            doubles = self._starting and took_s < self._settings.apply_target_s / QUICK
            more = self.size if doubles else self._settings.batch // GROWTH + 1
            self.size = min(self.size + more, self._settings.batch_max)

    def shrink(self) -> None:
        """The store failed: it may be the size."""
        self._starting = False
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
        except StoreUnavailable as error:
            self._failures += 1
            if self._failures < self._settings.breaker_failures:
                raise
            raise self._open(error) from error
        except RecordsRefused:
            self._close()  # it answered
            raise
        self._close()

    def _open(self, error: StoreUnavailable) -> StoreUnavailable:
        """Whoever tries again is to come when the rest is over."""
        rest_s = self._settings.breaker_rest_s
        self._open_until = time.monotonic() + rest_s
        self._gauge.set(1)
        return StoreUnavailable(str(error), max(rest_s, error.retry_after_s or 0.0))

    def _close(self) -> None:
        self._failures = 0
        self._gauge.set(0)


class Retry:
    """Calls again while the store is unavailable: exponential back-off with jitter, bounded attempts.

    Being told to stop ends a wait at once; the last error is raised as it is.
    """

    def __init__(self, settings: Resilience, stop: threading.Event) -> None:
        self._settings = settings
        self._backoff = tenacity.wait_exponential(
            multiplier=settings.backoff_s, max=settings.backoff_max_s
        ) + tenacity.wait_random(0, settings.backoff_s)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(settings.attempts), tenacity.stop_when_event_set(stop)),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._retrying(function, *args, **kwargs)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, StoreUnavailable) else None
        return max(self._backoff(state), min(asked or 0.0, self._settings.retry_after_max_s))


class Adaptive(Wrapped):
    """Cuts batches into shares that the store takes in good time, and tries each again if the store is unavailable.

    A share is cut anew for each attempt: one that was too large comes back smaller, and those before it are done.
    """

    def __init__(self, sink: Sink, pace: Pace, retry: Retry) -> None:
        super().__init__(sink)
        self._pace = pace
        self._retry = retry

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        refused: dict[str, str] = {}
        done = 0
        while done < len(changes):
            done += self._retry(self._share, generation, changes, done, refused)
        if refused:
            raise RecordsRefused(refused)

    def _share(self, generation: str, changes: Sequence[Change], done: int, refused: dict[str, str]) -> int:
        """Apply the next share and return its size; what the store refuses for good goes into ``refused``."""
        share = changes[done : done + self._pace.size]
        started = time.monotonic()
        try:
            self._sink.apply(generation, share)
        except StoreUnavailable:
            self._pace.shrink()
            raise
        except RecordsRefused as error:
            refused |= error.reasons
        self._pace.took(len(share), time.monotonic() - started)
        return len(share)


def resilient(
    sink: Sink, projector: str, settings: Resilience, stop: threading.Event, pace: Pace | None = None
) -> Sink:
    """The wrappers in their order: batches are cut into shares, and each is tried again behind the breaker."""
    guarded = Breaker(Measured(sink, projector), settings, projector)
    return Adaptive(guarded, pace or Pace(settings), Retry(settings, stop))
