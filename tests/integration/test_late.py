"""A writer that was paused between reading and writing puts right what it wrote over, in a store that cannot refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox.broker import KafkaSettings
from outbox.broker.local_settings import LocalSettings
from outbox.codec import Registry
from outbox.database import Connection, connected
from outbox.errors import DatabaseError, StoreUnavailable
from outbox.event import Event, NewEvent
from outbox.log.append import append
from projectors.late import Late, newest_of
from projectors.model import model_of
from projectors.pipeline import Plan, embedded
from projectors.record import Change, Record, Vector
from projectors.sinks.chroma import ChromaSink, open_sink
from projectors.sinks.chroma_codec import GUARD, guard_text

LATE_S = 2.0
G = "g1"


class Words:
    """One vector a word of the stream's text."""

    categories = ("thing",)

    def fold(self, state: Any, event: Event) -> Any:
        return event.data["name"]

    def records(self, stream: str, state: Any) -> list[Record]:
        return [Vector(f"{stream}#{n}", word) for n, word in enumerate(state.split())]


def embed(texts: Sequence[str]) -> list[list[float]]:
    return [[1.0, float(len(text))] for text in texts]


class Upserted(Words):
    """Each event says all; one cannot be folded."""

    def fold(self, state: Any, event: Event) -> Any:
        if event.data["name"] == "bad":
            raise ValueError("cannot fold this")
        return event.data["name"]

    def resets(self, stream: str, version: int, type: str) -> bool:
        return True


class Paused(ChromaSink):
    """Calls ``meanwhile`` once, between what it reads and what it writes."""

    meanwhile: Callable[[], None] | None = None

    def _plan(self, *arguments: Any) -> Any:
        plan = super()._plan(*arguments)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return plan


class World:
    """A log, a store, and two writers of it. ``now``: a clock that only a pause moves."""

    def __init__(self, connection: Connection, successor: ChromaSink) -> None:
        self.connection = connection
        self.registry = Registry.load()
        self.plan = Plan("things", "chroma", Words(), ("outbox.thing",), embed)
        self.successor = successor
        self.paused = Paused(successor._client, "things")
        self.now = 0.0
        self.late = Late(
            self.paused, newest_of(connection.info.dsn, self.plan, self.registry), LATE_S, lambda: self.now
        )

    def append(self, text: str) -> list[Change]:
        """One more version of thing-1; the changes that it makes."""
        before = {c.key for c in self.changes()}
        event = NewEvent("entity.upserted", {"kind": "thing", "name": text, "text": ""})
        version = append(self.connection, "thing-1", event).version
        now = self.changes()
        gone = before - {c.key for c in now}
        return now + [Change(key, "thing-1", version, None) for key in sorted(gone)]

    def changes(self) -> list[Change]:
        now = model_of(self.connection, self.plan, self.registry, "thing-1")
        return embedded(now.changes(), embed)

    def held(self) -> dict[str, int]:
        return {s.key: s.version for s in self.successor.scan(G)}


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[World]:
    with connected(database) as connection, open_sink("things", {"path": str(tmp_path / "chroma")}) as sink:
        sink.prepare(G)
        world = World(connection, sink)
        sink.apply(G, world.append("one two"))  # so that what follows are changes, which write over what stands
        yield world


def overtaken(world: World, pause_s: float) -> Callable[[], None]:
    """The successor applies two more versions, of which the last one has fewer words."""

    def meanwhile() -> None:
        world.now += pause_s
        for text in ("one two three", "one"):
            world.successor.apply(G, world.append(text))

    return meanwhile


def test_what_a_late_write_wrote_over_is_put_right(world: World) -> None:
    second = world.append("uno two")
    world.paused.meanwhile = overtaken(world, 60)
    world.late.apply(G, second)
    assert world.held() == {"thing-1#0": 4}


def test_what_it_wrote_over_is_put_right_behind_an_event_that_a_later_one_made_void(world: World) -> None:
    world.plan = replace(world.plan, projection=Upserted())
    world.late = Late(
        world.paused, newest_of(world.connection.info.dsn, world.plan, world.registry), LATE_S, lambda: world.now
    )
    world.append("bad")
    third = world.append("uno two")
    world.paused.meanwhile = overtaken(world, 60)
    world.late.apply(G, third)
    assert world.held() == {"thing-1#0": 5}


def test_older_changes_that_follow_do_not_bring_back_what_the_log_has_deleted_by_now(world: World) -> None:
    second, third, _ = world.append("uno two"), world.append("uno two three"), world.append("uno")

    def meanwhile() -> None:
        world.now += 60

    world.paused.meanwhile = meanwhile
    world.late.apply(G, second)
    assert world.held() == {"thing-1#0": 4}
    world.late.apply(G, third)
    assert world.held() == {"thing-1#0": 4}


def test_without_it_the_late_write_would_stand(world: World) -> None:
    second = world.append("uno two")
    world.paused.meanwhile = overtaken(world, 60)
    world.paused.apply(G, second)
    assert world.held() == {"thing-1#0": 2}


def test_a_write_in_good_time_reads_no_log(world: World) -> None:
    late = Late(world.paused, lambda keys: pytest.fail("asked for the log"), LATE_S, lambda: world.now)
    late.apply(G, world.append("uno two"))
    world.now += LATE_S * 2
    late.apply(G, world.append("one"))
    assert world.held() == {"thing-1#0": 3}


def test_a_write_whose_answer_never_came_is_looked_after_with_the_next(world: World) -> None:
    second = world.append("uno two")

    def lost() -> None:
        overtaken(world, 0)()
        raise StoreUnavailable("no answer in time")

    world.paused.meanwhile = lost
    with pytest.raises(StoreUnavailable):
        world.late.apply(G, second)
    # The server does it later, after the successor's.
    world.successor._client.get_collection("things.g1.records", embedding_function=None).update(
        ids=["thing-1#0"], metadatas=[{GUARD: guard_text(1, "thing-1")}]
    )
    assert world.held() == {"thing-1#0": 1}
    world.late.apply(G, [])
    assert world.held() == {"thing-1#0": 4}


def test_what_cannot_be_compared_with_the_log_now_stays_doubtful(world: World) -> None:
    doubts = {G: {"thing-1": {"thing-1#0"}}}
    away = newest_of("host=127.0.0.1 port=1", world.plan, world.registry)
    with pytest.raises(DatabaseError):
        Late(world.paused, away, LATE_S, doubts=doubts).apply(G, [])
    assert doubts == {G: {"thing-1": {"thing-1#0"}}}


@pytest.mark.parametrize("again_s", [60, 0], ids=["for long", "for a moment"])
def test_being_overtaken_again_while_putting_right_is_put_right_too(world: World, again_s: float) -> None:
    second = world.append("uno two")

    def twice() -> None:
        overtaken(world, 60)()
        world.paused.meanwhile = overtaken(world, again_s)

    world.paused.meanwhile = twice
    world.late.apply(G, second)
    assert world.held() == {"thing-1#0": 6}


def test_what_the_successor_is_about_to_write_is_left_to_it(world: World, monkeypatch) -> None:
    second, behind = world.append("uno two"), []

    def meanwhile() -> None:
        world.now += 60
        behind.append(world.append("uno two three"))  # in the log, and not yet in the store

    def looked(_: float) -> None:
        while behind:
            world.successor.apply(G, behind.pop())
            world.paused.meanwhile = lambda: pytest.fail("written at the same time as the successor")

    monkeypatch.setattr("projectors.late.time.sleep", looked)
    world.paused.meanwhile = meanwhile
    world.late.apply(G, second)
    assert world.held() == {"thing-1#0": 3, "thing-1#1": 3, "thing-1#2": 3}
    assert not behind, "it was written before the successor could"


@pytest.mark.parametrize(
    ("safe_s", "given_away_s"),
    [
        (LocalSettings().safe_s, LocalSettings().lease_s),
        (KafkaSettings("k:1").safe_s, KafkaSettings("k:1").session_timeout_s),
        (KafkaSettings("k:1", session_timeout_s=6).safe_s, 6.0),
    ],
    ids=["local", "Kafka", "Kafka, shortest session"],
)
def test_a_write_counts_as_late_before_a_halted_members_partitions_are_given_away(safe_s, given_away_s) -> None:
    beat_s = given_away_s / 3  # as old as its last heartbeat may be
    assert safe_s < given_away_s - beat_s


def test_a_projector_with_a_name_may_be_replaced_at_any_time() -> None:
    assert KafkaSettings("k:1", member="pod-0").safe_s < KafkaSettings("k:1").safe_s
