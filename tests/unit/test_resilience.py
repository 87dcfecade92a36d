"""Retry, breaker and adaptive batches, round a store that fails as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY

from outbox.errors import RecordsRefused, StoreError, StoreUnavailable
from projectors.record import Change, Row
from projectors.resilience import SHARE_MIN, Adaptive, Breaker, Measured, Pace, Resilience, Retry, resilient
from projectors.sinks.memory import MemorySink, Space

G = "g1"
QUICK = Resilience(attempts=4, backoff_s=0.001, backoff_max_s=0.004, breaker_failures=3, breaker_rest_s=0.05)


class Store(MemorySink):
    """Raises the errors it was given, one an apply, then works; remembers each apply's size."""

    def __init__(self, *errors: StoreError, size_max: int = 10_000, takes_s: float = 0.0) -> None:
        super().__init__(Space())
        self.prepare(G)
        self._errors = list(errors)
        self._size_max = size_max
        self._takes_s = takes_s
        self.sizes: list[int] = []

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        self.sizes.append(len(changes))
        if self._takes_s:
            threading.Event().wait(self._takes_s)
        if self._errors:
            raise self._errors.pop(0)
        if len(changes) > self._size_max:
            raise StoreUnavailable("too much at once")
        super().apply(generation, changes)

    def holds(self) -> int:
        return len(list(self.scan(G)))


def changes(number: int) -> list[Change]:
    return [Change(f"s#{n}", "s", 1, Row(f"s#{n}", {})) for n in range(number)]


def down(times: int, retry_after_s: float | None = None) -> list[StoreUnavailable]:
    return [StoreUnavailable(f"down {n}", retry_after_s) for n in range(times)]


def cut(store: Store, settings: Resilience) -> Adaptive:
    return Adaptive(store, Pace(settings), Retry(QUICK, threading.Event()))


def metric(name: str, projector: str) -> float:
    return REGISTRY.get_sample_value(name, {"projector": projector}) or 0.0


# ------------------------------------------------------------------------ retry


def test_a_store_that_comes_back_gets_the_batch() -> None:
    store = Store(*down(3))
    Retry(QUICK, threading.Event())(store.apply, G, changes(5))
    assert (store.sizes, store.holds()) == ([5, 5, 5, 5], 5)


def test_attempts_are_bounded_and_the_last_error_is_raised() -> None:
    store = Store(*down(9))
    with pytest.raises(StoreUnavailable, match="down 3"):
        Retry(QUICK, threading.Event())(store.apply, G, changes(1))
    assert len(store.sizes) == QUICK.attempts


def test_what_is_refused_for_good_is_not_tried_again() -> None:
    store = Store(RecordsRefused({"s#0": "odd"}))
    with pytest.raises(RecordsRefused):
        Retry(QUICK, threading.Event())(store.apply, G, changes(1))
    assert len(store.sizes) == 1


def test_a_store_is_left_alone_for_as_long_as_it_asks() -> None:
    store = Store(*down(1, retry_after_s=0.1))
    began = time.monotonic()
    Retry(QUICK, threading.Event())(store.apply, G, changes(1))
    assert time.monotonic() - began >= 0.1


def test_a_store_that_asks_for_too_long_is_asked_again_within_the_bound() -> None:
    store = Store(*down(1, retry_after_s=3_600.0))
    Retry(Resilience(backoff_s=0.001, retry_after_max_s=0.02), threading.Event())(store.apply, G, changes(1))
    assert store.holds() == 1


def test_being_told_to_stop_ends_a_wait_at_once() -> None:
    store, stop = Store(*down(9, retry_after_s=30.0)), threading.Event()
    failed: list[StoreUnavailable] = []

    def run() -> None:
        try:
            Retry(QUICK, stop)(store.apply, G, changes(1))
        except StoreUnavailable as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    stop.set()
    thread.join(timeout=5.0)
    assert not thread.is_alive()
    assert failed


# ---------------------------------------------------------------------- breaker


def test_the_breaker_opens_after_so_many_failures_in_a_row() -> None:
    store = Store(*down(3))
    breaker = Breaker(store, QUICK, "opens")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="down"):
            breaker.apply(G, changes(1))
    with pytest.raises(StoreUnavailable, match="left alone") as caught:
        breaker.apply(G, changes(1))
    assert len(store.sizes) == 3
    assert 0 < caught.value.retry_after_s <= QUICK.breaker_rest_s
    assert metric("outbox_projector_breaker_open", "opens") == 1


def test_failures_that_are_not_in_a_row_do_not_open_it() -> None:
    store = Store()
    breaker = Breaker(store, QUICK, "row")
    for _ in range(5):
        store._errors = down(2)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="down"):
                breaker.apply(G, changes(1))
        breaker.apply(G, changes(1))


def test_after_its_rest_one_failure_opens_it_again_and_one_success_closes_it() -> None:
    store = Store(*down(4))
    breaker = Breaker(store, QUICK, "half")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            breaker.apply(G, changes(1))
    threading.Event().wait(QUICK.breaker_rest_s)
    with pytest.raises(StoreUnavailable, match="down 3"):
        breaker.apply(G, changes(1))
    with pytest.raises(StoreUnavailable, match="left alone"):
        breaker.apply(G, changes(1))
    threading.Event().wait(QUICK.breaker_rest_s)
    breaker.apply(G, changes(1))
    breaker.apply(G, changes(1))
    assert len(store.sizes) == 6
    assert metric("outbox_projector_breaker_open", "half") == 0


def test_a_store_that_refuses_records_is_alive() -> None:
    store = Store(*down(2), RecordsRefused({"s#0": "odd"}), *down(1))
    breaker = Breaker(store, QUICK, "refuses")
    for kind in (StoreUnavailable, StoreUnavailable, RecordsRefused, StoreUnavailable):
        with pytest.raises(kind):
            breaker.apply(G, changes(1))
    breaker.apply(G, changes(1))


# ------------------------------------------------------------- adaptive batches


def test_batches_double_while_the_store_is_quick() -> None:
    settings = Resilience(batch=100, batch_max=350)
    store = Store()
    cut(store, settings).apply(G, changes(100 + 200 + 350 + 350))
    assert store.sizes == [100, 200, 350, 350]


def test_batches_grow_by_steps_once_the_store_has_failed() -> None:
    pace = Pace(Resilience(batch=100, batch_max=57))
    pace.shrink()
    store = Store()
    Adaptive(store, pace, Retry(QUICK, threading.Event())).apply(G, changes(50 + 53 + 56 + 57 + 57))
    assert store.sizes == [50, 53, 56, 57, 57]


def test_a_batch_that_is_in_time_but_not_quick_is_not_doubled() -> None:
    pace = Pace(Resilience(batch=100, apply_target_s=1.0))
    pace.took(100, 0.5)
    assert pace.size == 103


def test_batches_halve_when_the_store_is_slow_but_not_below_the_least() -> None:
    settings = Resilience(batch=64, apply_target_s=0.0)
    store = Store(takes_s=0.001)
    cut(store, settings).apply(G, changes(64 + 32 + 16 + 16))
    assert store.sizes == [64, 32, SHARE_MIN, SHARE_MIN]


def test_a_batch_smaller_than_its_size_does_not_raise_it() -> None:
    pace = Pace(Resilience(batch=100))
    Adaptive(Store(), pace, Retry(QUICK, threading.Event())).apply(G, changes(99))
    assert pace.size == 100


def test_a_batch_too_large_for_the_store_gets_through_in_smaller_shares() -> None:
    settings = Resilience(attempts=5, backoff_s=0.001, breaker_failures=9, batch=400)
    store = Store(size_max=60)
    resilient(store, "large", settings, threading.Event()).apply(G, changes(900))
    assert store.holds() == 900
    assert sum(size for size in store.sizes if size <= 60) == 900, "no share that was taken came again"


def test_what_was_learnt_of_the_store_outlives_the_session() -> None:
    settings = Resilience(attempts=1, batch=200)
    pace, store = Pace(settings), Store(size_max=60)
    for size in (200, 100):
        with pytest.raises(StoreUnavailable):
            resilient(store, "learnt", settings, threading.Event(), pace).apply(G, changes(250))
        assert store.sizes[-1] == size
    resilient(store, "learnt", settings, threading.Event(), pace).apply(G, changes(50))
    assert store.holds() == 50


def test_refusals_of_all_shares_are_raised_together_and_the_rest_is_applied() -> None:
    store = Store(RecordsRefused({"s#1": "odd"}), RecordsRefused({"s#21": "even"}))
    with pytest.raises(RecordsRefused) as caught:
        cut(store, Resilience(batch=20)).apply(G, changes(60))
    assert caught.value.reasons == {"s#1": "odd", "s#21": "even"}
    assert sum(store.sizes) == 60


# --------------------------------------------------------------------- together


def test_all_together_an_outage_costs_attempts_not_records() -> None:
    store = Store(*down(3))
    sink = resilient(store, "together", QUICK, threading.Event())
    sink.apply(G, changes(50))
    assert store.holds() == 50
    assert metric("outbox_projector_store_errors_total", "together") == 3
    assert metric("outbox_projector_changes_total", "together") == 50


def test_everything_but_apply_is_passed_on() -> None:
    sink = resilient(Store(), "passed", QUICK, threading.Event())
    sink.prepare("g2")
    sink.apply("g2", changes(3))
    assert [s.key for s in sink.scan("g2", ["s#1"])] == ["s#1"]
    sink.switch("g2")
    sink.drop("g2")
    with pytest.raises(StoreUnavailable):
        sink.apply("g2", changes(1))


def test_only_passing_failures_are_counted() -> None:
    store = Store(RecordsRefused({"s#0": "odd"}))
    with pytest.raises(RecordsRefused):
        Measured(store, "counted").apply(G, changes(1))
    assert metric("outbox_projector_store_errors_total", "counted") == 0
