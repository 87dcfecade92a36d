"""Calling a function in a new process, so that what is measured shares neither memory nor interpreter with us."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

WITHIN_S = 900


def elsewhere(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a module's function returns there. Raises RuntimeError if it fails or takes longer than WITHIN_S."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_call, args=(there, function, args, kwargs))
    process.start()
    there.close()
    try:
        if not here.poll(WITHIN_S):
            raise RuntimeError(f"{function.__qualname__} did not end within {WITHIN_S} s")
        returned: R = here.recv()
        return returned
    except EOFError as error:
        raise RuntimeError(f"{function.__qualname__} failed: see above") from error
    finally:
        process.terminate()
        process.join()


def _call(there: Pipe, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    there.send(function(*args, **kwargs))
