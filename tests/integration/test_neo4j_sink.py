"""What is Neo4j's own about its sink and reader, on the real server."""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import neo4j
import pytest
from neo4j.exceptions import Neo4jError

from outbox.errors import RecordsRefused, SettingsError, StoreUnavailable
from projectors.query.neo4j import open_reader
from projectors.record import Change, Edge, Node, Stored, digest
from projectors.sinks import neo4j as neo4j_sink
from projectors.sinks import neo4j_session, neo4j_write
from projectors.sinks.neo4j import Neo4jSink, open_sink
from projectors.sinks.neo4j_form import Row, row_of
from projectors.sinks.neo4j_session import cypher, label_of

G = "g1"


@pytest.fixture
def projection() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(address: Any) -> dict[str, Any]:
    return {"url": address("neo4j")}


@pytest.fixture
def sink(projection: str, settings: dict[str, Any]) -> Iterator[Neo4jSink]:
    with open_sink(projection, settings) as sink:
        sink.prepare(G)
        yield sink
        for generation in (G, "g2"):
            sink.drop(generation)


@pytest.fixture
def ask(projection: str, settings: dict[str, Any]) -> Iterator[Any]:
    """``ask("MATCH (n:LABEL) RETURN n.x")``: rows, as a user would read them."""
    with neo4j.GraphDatabase.driver(settings["url"], notifications_min_severity="OFF") as driver:
        yield lambda text, **p: [
            row.values() for row in driver.execute_query(cypher(text, label_of(projection, G)), p).records
        ]


def put(node: Node, version: int = 1) -> Change:
    return Change(node.key, f"n-{node.key}", version, node)


def held(sink: Neo4jSink) -> set[Stored]:
    return set(sink.scan(G))


def stored(change: Change) -> Stored:
    assert change.record is not None
    return Stored(change.key, change.stream, change.version, digest(change.record))


def test_kinds_properties_and_edges_are_there_for_plain_cypher(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(
        G, [put(Node("a", "Class", "A", {"lines": 3}, [Edge("CALLS", "b", {"n": 2})])), put(Node("b", "Function", "f"))]
    )
    found = ask("MATCH (c:LABEL:Class)-[r:CALLS]->(f:Function) RETURN c.name, c.lines, r.n, f.name")
    assert found == [["A", 3, 2, "f"]]


def test_a_changed_kind_takes_the_old_label_away(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(G, [put(Node("a", "Old", "A"))])
    sink.apply(G, [put(Node("a", "New", "A"), 2)])
    assert ask("MATCH (n:LABEL) RETURN 'Old' IN labels(n), 'New' IN labels(n)") == [[False, True]]
    sink.apply(G, [Change("a", "n-a", 3, None)])
    assert ask("MATCH (n:LABEL) RETURN 'New' IN labels(n), n.name") == [[False, None]]


def test_a_kind_named_like_another_generation_does_not_put_the_node_into_it(
    sink: Neo4jSink, projection: str, ask: Any
) -> None:
    sink.prepare("g2")
    sink.apply(G, [put(Node("a", label_of(projection, "g2"), "A")), put(Node("b", "Outbox", "B"))])
    assert list(sink.scan("g2")) == []
    assert len(held(sink)) == 2


@pytest.mark.parametrize(("old", "new"), [(0.0, -0.0), (1, 1.0), (1, True), ([1], [1.0]), ("e\u0301", "\u00e9")])
def test_a_value_replaces_one_that_is_equal_but_not_the_same(sink: Neo4jSink, old: Any, new: Any) -> None:
    sink.apply(G, [put(Node("a", "K", "A", {"p": old}, [Edge("E", "b", {"p": old})]))])
    later = put(Node("a", "K", "A", {"p": new}, [Edge("E", "b", {"p": new})]), 2)
    sink.apply(G, [later])
    assert held(sink) == {stored(later)}


@pytest.mark.parametrize("later", [Node("a", "K", "A"), None], ids=["without edges", "deleted"])
def test_edges_of_a_node_from_before_there_were_hashes_are_cut(sink: Neo4jSink, ask: Any, later: Node | None) -> None:
    sink.apply(G, [put(Node("a", "K", "A", {}, [Edge("E", "b")]))])
    ask("MATCH (n:LABEL) REMOVE n._edges")
    sink.apply(G, [Change("a", "n-a", 2, later)])
    assert ask("MATCH (:LABEL)-[r]->() RETURN count(r)") == [[0]]


def test_a_refused_node_is_named_and_does_not_stop_the_others(sink: Neo4jSink) -> None:
    good = [put(Node(f"k{n}", "K", "n", {}, [Edge("E", f"k{n + 1}")])) for n in range(20)]
    bad = [
        put(Node("no edge kind", "K", "n", {}, [Edge("", "k1")])),
        put(Node("k" * 9_000, "K", "n")),
        put(Node("surrogate", "K", "\ud800")),
    ]
    with pytest.raises(RecordsRefused) as raised:
        sink.apply(G, [*good[:7], *bad, *good[7:]])
    assert raised.value.reasons.keys() == {change.key for change in bad}
    assert held(sink) == {stored(change) for change in good}


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


@pytest.mark.parametrize("later", [True, False], ids=["dropped", "never prepared"])
def test_a_generation_that_is_not_there_has_no_answers(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], later: bool
) -> None:
    if later:
        sink.drop(G)
    g = G if later else "g2"
    with open_reader(projection, settings) as reader:
        questions: tuple[Callable[[], object], ...] = (
            lambda: list(sink.scan(g)),
            lambda: list(sink.scan(g, ["a"])),
            lambda: sink.sums(g),
            lambda: list(sink.scan_slices(g, [1])),
            lambda: reader.find(g, "a", 1),
            lambda: reader.neighbours(g, "a", "both", None, 1),
            lambda: reader.paths(g, "a", "b", 2, 1),
        )
        for question in questions:
            with pytest.raises(StoreUnavailable, match="has not been prepared"):
                question()


def test_a_late_write_to_a_dropped_generation_leaves_nothing(sink: Neo4jSink, ask: Any) -> None:
    sink.drop(G)
    with pytest.raises(StoreUnavailable):
        sink.apply(G, [put(Node("a", "K", "A"))])
    assert ask("MATCH (n:LABEL) RETURN count(n)") == [[0]]


def test_a_transaction_that_a_drop_overtakes_leaves_nothing(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied, dropping = threading.Event(), ThreadPoolExecutor(1)

    def make(*given: Any) -> Any:
        """In a transaction that has read the mark: the drop goes on until it waits for this one."""
        tasks.append(dropping.submit(drop))
        assert emptied.wait(30)
        return made(*given)

    def drop() -> None:
        with open_sink(projection, settings) as other:
            other.drop(G)

    def noted(text: str, label: str) -> str:
        if text.startswith("DROP"):
            emptied.set()
        return cypher(text, label)

    tasks: list[Any] = []
    made = neo4j_write._make
    monkeypatch.setattr(neo4j_write, "_make", make)
    monkeypatch.setattr(neo4j_sink, "cypher", noted)
    sink.apply(G, [put(Node("a", "K", "A"))])
    tasks[0].result(30)
    assert ask("MATCH (n:LABEL) RETURN count(n)") == [[0]]


def test_writers_at_once_leave_each_node_with_the_edges_of_its_last_version(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    """Neo4j shows a commit in parts to whoever reads without locks: a new version with the old edges."""
    keys = [f"k{n}" for n in range(40)]

    def change(key: str, version: int) -> Change:
        targets = random.Random(f"{key} {version}").sample(keys, 5)
        return put(Node(key, "K", "n", {"v": version}, [Edge("E", t, {"v": version}) for t in targets]), version)

    def write(seed: int) -> None:
        mine = random.Random(seed).sample([change(k, v) for k in keys for v in range(1, 31)], 30 * len(keys))
        with open_sink(projection, settings) as own:
            for start in range(0, len(mine), 40):
                own.apply(G, mine[start : start + 40])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert held(sink) == {stored(change(key, 30)) for key in keys}


def apply_behind(sink: Neo4jSink, projection: str, url: str, ours: Change, theirs: dict[str, Any]) -> None:
    """Apply our change while somebody else's transaction, which commits then, has written the node."""
    label = label_of(projection, G)
    theirs_first = cypher("MERGE (n:LABEL {_key: $it._key}) SET n:Outbox SET n = $it", label)
    blocked = "SHOW TRANSACTIONS YIELD status, currentQuery WHERE currentQuery CONTAINS $label RETURN status"
    with (
        neo4j.GraphDatabase.driver(url, notifications_min_severity="OFF") as driver,
        driver.session() as writing,
        driver.session() as watching,
        ThreadPoolExecutor(1) as pool,
    ):
        with writing.begin_transaction() as transaction:
            transaction.run(theirs_first, it=theirs).consume()
            applying = pool.submit(sink.apply, G, [ours])
            while not any(str(row["status"]).startswith("Blocked") for row in watching.run(blocked, label=label)):
                assert not applying.done()
            transaction.commit()
        applying.result()


THEIRS = {
    "a stub": None,
    "older": put(Node("a", "Old", "theirs", {"p": 1}), 4),
    "newer": put(Node("a", "K", "theirs", {"p": 1}), 6),
    "a tombstone": Change("a", "n-a", 6, None),
}


@pytest.mark.parametrize("theirs", THEIRS.values(), ids=THEIRS)
def test_a_node_that_somebody_makes_after_it_was_looked_for_is_written_under_the_guard(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], theirs: Change | None
) -> None:
    ours = put(Node("a", "K", "ours", {}, [Edge("E", "b"), Edge("E", "c")]), 5)
    properties = dict(row_of(theirs).properties) if theirs else {"_key": "a", "_live": False}
    apply_behind(sink, projection, settings["url"], ours, properties)
    last = theirs if theirs and theirs.version > ours.version else ours
    assert held(sink) == ({stored(last)} if last.record else set())


@pytest.mark.parametrize("version", [4, 6], ids=["older", "newer"])
def test_a_node_that_somebody_changes_after_it_was_looked_at_is_written_under_the_guard(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], version: int
) -> None:
    first, theirs, ours = (put(Node("a", "K", "A", {"v": v}, [Edge("E", "b")]), v) for v in (1, version, 5))
    sink.apply(G, [first])
    apply_behind(sink, projection, settings["url"], ours, dict(row_of(theirs).properties))
    assert held(sink) == {stored(max(theirs, ours, key=lambda change: change.version))}


def test_edges_that_come_to_a_node_that_was_there_join_it_to_new_and_old_ends(sink: Neo4jSink, ask: Any) -> None:
    sink.apply(G, [put(Node("a", "K", "A")), put(Node("b", "K", "B")), put(Node("c", "K", "C"))])
    later = [
        put(Node("a", "K", "A", {}, [Edge("E", "b", {"n": 1}), Edge("F", "new"), Edge("E", "a")]), 2),
        put(Node("new", "K", "N", {}, [Edge("E", "c"), Edge("E", "stub"), Edge("E", "new")])),
    ]
    sink.apply(G, later)
    assert held(sink) >= {stored(change) for change in later}
    assert ask("MATCH (n:LABEL) WHERE n._lock IS NOT NULL RETURN count(n)") == [[0]]
    assert ask("MATCH (n:LABEL) WHERE NOT n:Outbox RETURN count(n)") == [[0]]


def test_a_generation_is_made_while_others_come_and_go(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    """To wait for all indexes of the database fails where one of them is dropped."""
    stop = threading.Event()

    def come_and_go() -> None:
        with open_sink(f"{projection}_other", settings) as other:
            while not stop.is_set():
                other.prepare(G)
                other.drop(G)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come_and_go)
        try:
            for _ in range(20):
                sink.prepare("g2")
                sink.drop("g2")
        finally:
            stop.set()
        coming.result()


def test_members_that_change_edges_to_each_others_nodes_wait_for_each_other_and_do_not_deadlock(
    sink: Neo4jSink, projection: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A deadlock costs a second or more: the driver waits before it tries again."""
    keys = [f"k{n:03}" for n in range(600)]

    def change(key: str, version: int) -> Change:
        targets = random.Random(f"{key} {version}").sample(keys, 3)
        return put(Node(key, "K", "n", {}, [Edge("E", target) for target in targets]), version)

    def member(number: int) -> None:
        with open_sink(projection, settings) as own:
            for version in range(1, 5):
                own.apply(G, [change(key, version) for key in keys[number::3]])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(member, range(3)))
    assert held(sink) == {stored(change(key, 4)) for key in keys}
    assert [record.message for record in caplog.records if "DeadlockDetected" in record.message] == []


def test_one_generation_is_marked_as_serving(sink: Neo4jSink, projection: str, ask: Any) -> None:
    sink.prepare("g2")
    for generation in (G, "g2", G):
        sink.switch(generation)
        serving = ask("MATCH (g:OutboxGeneration {projection: $p, serving: true}) RETURN g.label", p=projection)
        assert serving == [[label_of(projection, generation)]]


def test_what_someone_else_changed_is_seen_by_a_scan(sink: Neo4jSink, ask: Any) -> None:
    change = put(Node("a", "K", "A", {"p": 1}, [Edge("E", "b")]))
    sink.apply(G, [change])
    for spoil in ("SET n.p = 2", "SET n.q = date()", "REMOVE n.name", "CREATE (n)-[:E]->(n)"):
        ask(f"MATCH (n:LABEL {{_key: 'a'}}) {spoil}")
        assert held(sink) != {stored(change)}
        ask("MATCH (n:LABEL {_key: 'a'}) OPTIONAL MATCH (n)-[r]->(n) SET n.p = 1, n.name = 'A' REMOVE n.q DELETE r")
        assert held(sink) == {stored(change)}


def test_a_name_too_long_for_the_index_is_found_whole_only(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    name = "é" * 20_000
    sink.apply(G, [put(Node("a", "K", name))])
    with open_reader(projection, settings) as reader:
        assert [hit.key for hit in reader.find(G, name, 5)] == ["a"]
        assert reader.find(G, name[:1_000], 5) == reader.find(G, name + "x", 5) == []


def test_two_ends_without_a_path_are_told_apart_soon(
    sink: Neo4jSink, projection: str, settings: dict[str, Any]
) -> None:
    def web(side: str) -> list[Change]:
        ends = [f"{side}{n}" for n in range(60)]
        return [put(Node(k, "K", k, {}, [Edge("E", other) for other in ends if other != k])) for k in ends]

    sink.apply(G, web("a") + web("b"))
    with open_reader(projection, settings | {"timeout_s": 10}) as reader:
        assert reader.paths(G, "a1", "b1", 6, 10) == []
        assert [len(path.edges) for path in reader.paths(G, "a1", "a2", 6, 10)] == [1] + [2] * 9


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
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self._open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
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
