"""Neo4j's server: one that is too old, too small or silent is told apart from a record that it refuses."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import neo4j
import pytest
from neo4j.exceptions import Neo4jError

from outbox.errors import RecordsRefused, SettingsError, StoreUnavailable
from projectors.record import Node
from projectors.sinks import neo4j as neo4j_sink
from projectors.sinks import neo4j_session, neo4j_write
from projectors.sinks.neo4j import Neo4jSink, open_sink
from projectors.sinks.neo4j_form import Row
from tests.integration.neo4j_store import G, held, put, settings, sink, stored  # noqa: F401


def test_a_server_that_does_not_know_a_statement_refuses_no_records(
    sink: Neo4jSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neo4j_write, "_MAKE", neo4j_write._MAKE.replace("CALL (nodes)", "CALL OF TOMORROW (nodes)"))
    with pytest.raises(StoreUnavailable, match="too old"):
        sink.apply(G, [put(Node(f"k{n}", "K", "n")) for n in range(3)])
    monkeypatch.undo()
    assert held(sink) == set()


def test_what_is_too_large_for_the_servers_memory_is_written_by_parts_and_one_node_alone_is_refused(
    sink: Neo4jSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def limited(tx: neo4j.ManagedTransaction, label: str, batch: Sequence[Row]) -> None:
        tried.append(len(batch))
        if sum(len(str(row.properties)) for row in batch) > 100_000:
            code = "Neo.TransientError.General.MemoryPoolOutOfMemoryError"
            raise Neo4jError._hydrate_neo4j(code=code, message="more than the limit")
        neo4j_write.write(tx, label, batch)

    monkeypatch.setattr(neo4j_sink, "write", limited)
    monkeypatch.setattr(neo4j_sink, "LARGE_CHARACTERS", 200_000)
    good = [put(Node(f"k{n}", "K", "n", {"text": "x" * 40_000})) for n in range(8)]
    large = put(Node("too large", "K", "n", {"text": "x" * 200_000}))
    with pytest.raises(RecordsRefused) as raised:
        sink.apply(G, [*good, large])
    assert raised.value.reasons.keys() == {large.key}
    assert held(sink) == {stored(change) for change in good}
    assert tried.count(9) == 1, "the driver tried the same again"
    with pytest.raises(StoreUnavailable):  # too small to be to blame
        sink.apply(G, [put(Node("other", "K", "n", {"text": "x" * 150_000}))])


class Valve:
    """A TCP forwarder that can be shut: connections stay open and nothing comes through."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"bolt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.shut, self.reopen = self._open.clear, self._open.set
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self._open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self.reopen()
        self._listener.close()


def test_a_watch_that_goes_off_just_after_its_session_breaks_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    watches = []

    class Watch:
        daemon = True
        start = cancel = staticmethod(lambda: None)

        def __init__(self, _: float, goes_off: Any, given: Any) -> None:
            watches.append(lambda: goes_off(*given))

    monkeypatch.setattr(neo4j_session, "Timer", Watch)
    with open_sink("nobody", {"url": "bolt://127.0.0.1:9", "retry_s": 0.1}) as sink:
        with pytest.raises(StoreUnavailable, match="connect"):
            sink.prepare(G)
        watches[0]()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="connect"):
                sink.prepare(G)


def test_a_server_that_falls_silent_is_given_up_and_taken_up_again(projection: str, settings: dict[str, Any]) -> None:
    valve = Valve(settings["url"])
    first, second = put(Node("a", "K", "A")), put(Node("a", "K", "B"), 2)
    with open_sink(projection, {"url": valve.url, "timeout_s": 1, "retry_s": 1}) as sink:
        sink.prepare(G)
        sink.apply(G, [first])
        valve.shut()
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer"):
            sink.apply(G, [second])
        assert time.monotonic() - began_s < 15
        valve.reopen()
        sink.apply(G, [second])
        assert held(sink) == {stored(second)}
        sink.drop(G)
    valve.close()


@pytest.mark.parametrize(
    "wrong", [{}, {"url": "ftp://h:1"}, {"url": "bolt://h:1", "x": 1}, {"url": "bolt://h", "timeout_s": 0}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="setting"), open_sink("p", wrong):
        pass
