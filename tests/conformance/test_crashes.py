"""What a store holds after writers were killed, came late or wrote at once: other processes, the real store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from projectors.record import Change
from projectors.sinks.protocol import is_conditional
from tests.conformance.sinks import Space, expected, held, history, where

SEED, LENGTH, KEYS = 11, 3_000, 400
BATCH = 300


@where(lambda store: store.durable)
@pytest.mark.parametrize(("killed_at", "after_s"), [(0, 0.0), (1, 0.01), (2, 0.05), (5, 0.15)])
def test_a_writer_killed_in_mid_apply_loses_nothing_that_was_applied(
    space: Space, kind: type, killed_at: int, after_s: float
) -> None:
    changes = history(kind, SEED, LENGTH, KEYS)
    with space.open() as sink:
        g = space.generation(sink)
    with _writer(space, g, kind) as writer:
        for batch in range(killed_at):
            _tell(writer, batch * BATCH, (batch + 1) * BATCH)
            _hear(writer, "applying", "applied")
        _tell(writer, killed_at * BATCH, LENGTH)
        _hear(writer, "applying")
        with suppress(subprocess.TimeoutExpired):
            writer.wait(timeout=after_s)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    with space.open() as sink:
        sink.apply(g, changes[killed_at * BATCH :])
        assert held(sink, g) == expected(changes)


@where(lambda store: store.unreachable)
def test_a_process_that_comes_late_with_an_old_batch_changes_nothing(space: Space, kind: type) -> None:
    changes = history(kind, SEED, 600, KEYS)
    with space.open() as sink:
        g = space.generation(sink)
        with _writer(space, g, kind, len(changes)) as zombie:
            _tell(zombie, 0, 100)
            _hear(zombie, "applying", "applied")
            sink.apply(g, changes)
            _tell(zombie, 0, 400)
            _hear(zombie, "applying", "applied")
        assert held(sink, g) == expected(changes)


@where(lambda store: store.concurrent)
def test_writers_at_once_end_the_same(space: Space, kind: type) -> None:
    changes = history(kind, SEED, 1_200, 40)
    with space.open() as sink:
        g = space.generation(sink)
        with ThreadPoolExecutor(2) as pool:
            halves = [pool.submit(_apply_all, space, g, order) for order in (changes, changes[::-1])]
            for half in halves:
                half.result()
        assert held(sink, g) == expected(changes)


@where(lambda store: True)
def test_only_a_sink_that_two_writers_cannot_confuse_says_so(space: Space, kind: type) -> None:
    """Of one that does not say it, what it writes late is compared with the log."""
    del kind
    with space.open() as sink:
        assert is_conditional(sink) == space.store.concurrent


def _apply_all(space: Space, generation: str, changes: list[Change]) -> None:
    with space.open() as sink:
        for start in range(0, len(changes), 60):
            sink.apply(generation, changes[start : start + 60])


@contextmanager
def _writer(space: Space, generation: str, kind: type, length: int = LENGTH) -> Iterator[subprocess.Popen[str]]:
    told = {
        "entry": space.store.entry,
        "projection": space.projection,
        "settings": space.settings,
        "generation": generation,
        "kind": kind.__name__,
        "seed": SEED,
        "length": length,
        "keys": KEYS,
    }
    command = [sys.executable, "-m", "tests.conformance.writer", json.dumps(told)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            _hear(writer, "open")
            yield writer
        finally:
            with suppress(BrokenPipeError):
                writer.stdin.close()
            if writer.poll() is None:
                writer.kill()


def _tell(writer: subprocess.Popen[str], start: int, end: int) -> None:
    writer.stdin.write(f"{start} {end}\n")
    writer.stdin.flush()


def _hear(writer: subprocess.Popen[str], *words: str) -> None:
    for word in words:
        assert writer.stdout.readline().strip() == word
