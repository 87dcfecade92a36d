"""Named points in the product at which a process does something to itself. The product knows nothing of them.

A point is a function of the product, wrapped in the process that is told to (see ``launch.py``). An order is
``NAME:before|after:N:ACTION``: at the Nth call that does any work, before or after it, ``kill`` (SIGKILL), ``pause``
(SIGSTOP), ``zombie`` (SIGSTOP, and once the call has ended SIGKILL) or ``term`` (SIGTERM, and go on). A paused process that goes on leaves a mark once the call has ended, so
that a test can wait for what a zombie does.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORDER = "OUTBOX_TEST_POINT"
MARK = "OUTBOX_TEST_MARK"
SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "zombie": signal.SIGSTOP, "term": signal.SIGTERM}

Busy = Callable[[tuple[Any, ...], Any], bool]
"""Whether a call works on anything: its arguments and, afterwards, its result."""


def _always(_: tuple[Any, ...], __: Any) -> bool:
    return True


def _given(arguments: tuple[Any, ...], _: Any) -> bool:
    return bool(arguments[-1])


def _rows(arguments: tuple[Any, ...], _: Any) -> bool:
    return bool(arguments[1])


def _page(_: tuple[Any, ...], result: Any) -> bool:
    return bool(result.rows)


@dataclass(frozen=True)
class Point:
    """``path`` within ``module`` names the function."""

    module: str
    path: str
    busy: Busy = _always


POINTS: Mapping[str, Point] = {
    "writer.commit": Point("psycopg", "Connection.commit"),
    "relay.read": Point("outbox.relay.poll", "PollEngine.read", _page),
    "relay.send": Point("outbox.relay.leader", "Leader._send", _given),
    "relay.flush": Point("outbox.broker.confluent_producer", "ConfluentProducer._flush"),
    "relay.publish": Point("outbox.relay.exactly_once", "ExactlyOnceLeader._commit", _rows),
    "relay.note": Point("outbox.broker.transactions", "KafkaTransactions._put"),
    "relay.commit": Point("outbox.broker.confluent_transactions", "ConfluentClient.commit"),
    "relay.mark": Point("outbox.relay.cursor", "advance"),
    "project.apply.rows": Point("projectors.sinks.postgres", "PostgresSink.apply", _given),
    "project.apply.documents": Point("projectors.sinks.elasticsearch", "ElasticsearchSink.apply", _given),
    "project.apply.vectors": Point("projectors.sinks.chroma", "ChromaSink.apply", _given),
    "project.write.vectors": Point("projectors.sinks.chroma", "_write", _rows),
    "project.apply.nodes": Point("projectors.sinks.neo4j", "Neo4jSink.apply", _given),
    "project.checkpoint": Point("projectors.ledger", "save_checkpoints"),
    "rebuild.begin": Point("projectors.ledger", "begin_generation"),
    "rebuild.load": Point("projectors.ledger", "note_progress"),
    "rebuild.catch_up": Point("projectors.catching_up", "CatchingUp.wait"),
    "rebuild.verify": Point("projectors.operations", "_compared"),
    "rebuild.alias": Point("projectors.sinks.postgres", "PostgresSink.switch"),
    "rebuild.alias.documents": Point("projectors.sinks.elasticsearch", "ElasticsearchSink.switch"),
    "rebuild.switch": Point("projectors.ledger", "switch_generation"),
    "rebuild.drop": Point("projectors.rebuild", "_drop_old"),
}


def replace(module: str, path: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(what is there)`` in the place of a function or value. Raises AttributeError if nothing is there."""
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, make(getattr(owner, name)))


def arm(environment: Mapping[str, str]) -> None:
    """Wrap the point that this process's environment orders, if it orders one."""
    if order := environment.get(ORDER):
        name, when, number, action = order.split(":")
        point = POINTS[name]
        mark = Path(environment[MARK])
        replace(point.module, point.path, lambda function: _wrapped(function, point, when, int(number), action, mark))


def _wrapped(
    function: Callable[..., Any], point: Point, when: str, number: int, action: str, mark: Path
) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if when == "before" and point.busy(arguments, None):
            calls += 1
            if calls == number:
                return _acting(action, mark, lambda: function(*arguments, **named))
        result = function(*arguments, **named)
        if when == "after" and point.busy(arguments, result):
            calls += 1
            if calls == number:
                return _acting(action, mark, lambda: result)
        return result

    return wrapper


def _acting(action: str, mark: Path, then: Callable[[], Any]) -> Any:
    os.kill(os.getpid(), SIGNALS[action])
    try:
        return then()
    finally:
        if action == "zombie":
            os.kill(os.getpid(), signal.SIGKILL)
        mark.touch()
