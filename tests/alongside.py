"""Threads that go on while a test does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def alongside(*runs: Callable[[threading.Event], object], name: str | None = None) -> Iterator[None]:
    """Have each run in a thread of its own until the block ends; the flag that it is given is set then.

    Raises what ended one of them by itself, also in place of what the block raises, which mostly follows from it.
    """
    ended, failures = threading.Event(), list[BaseException]()

    def run(one: Callable[[threading.Event], object]) -> None:
        try:
            one(ended)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[one], name=name) for one in runs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
