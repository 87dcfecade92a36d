"""Neo4j: writers, members and drops at the same moment leave each node and its edges as its last version says."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import neo4j
import pytest

from projectors.record import Change, Edge, Node
from projectors.sinks import neo4j as neo4j_sink
from projectors.sinks import neo4j_write
from projectors.sinks.neo4j import Neo4jSink, open_sink
from projectors.sinks.neo4j_form import row_of
from projectors.sinks.neo4j_session import cypher, label_of
from tests.integration.neo4j_store import G, ask, held, put, settings, sink, stored  # noqa: F401


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
