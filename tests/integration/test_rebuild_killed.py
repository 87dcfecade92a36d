"""A real ``outbox rebuild``, killed at each of its steps in each store: readers find all at any time, the next run ends
clean, and nothing is left over."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from outbox.database import connected
from outbox.log.append import append
from outbox.settings import Projecting, load
from projectors import ledger, operations
from projectors.record import digest
from tests.alongside import alongside
from tests.faults.points import MARK, ORDER
from tests.faults.processes import begin
from tests.integration.reading import Stage, assert_equal_to_model, put, staged, until
from tests.integration.rebuild_stores import PLACES, Place, command

STEPS = {
    "before it is written down": "begin:before:1",
    "once it is written down": "begin:after:1",
    "once the store is prepared": "prepare:after:1",
    "before the second batch": "apply:before:2",
    "before the second batch's progress is noted": "note:before:2",
    "once progress is noted": "note:after:1",
    "before it catches up": "catch up:before:1",
    "in the catch-up": "session:before:1",
    "in the catch-up, before the checkpoint": "checkpoint:before:1",
    "before it is verified": "verify:before:1",
    "once it is verified": "verify:after:1",
    "before the alias is switched": "alias:before:1",
    "between the alias and the row": "alias:after:1",
    "once the row is switched": "row:after:1",
    "between dropping the old and forgetting it": "forget:before:1",
    "once the old is gone": "drop:after:1",
}
IN_EVERY_STORE = (
    "before the second batch",
    "between the alias and the row",
    "between dropping the old and forgetting it",
)
CASES = [("postgres", step) for step in STEPS] + [
    (store, step) for store in PLACES if store != "postgres" for step in IN_EVERY_STORE
]

LASTING = 60
"""Streams that nobody changes while the build goes on."""
CHILD_S = 90.0
WRITE_EVERY_S = 0.01
READ_EVERY_S = 0.01
"""Both share a process with the relay and the projector, which must get on."""


@dataclass
class Scene:
    """One projector in one store, with its relay and projector running."""

    stage: Stage
    place: Place
    address: str
    projector: str
    folder: Path
    environment: dict[str, str]

    def rebuild(self, order: str | None = None) -> int | None:
        """Run ``outbox rebuild`` to its end, whichever that is."""
        ordered = {ORDER: f"{order}:kill", MARK: str(self.folder / "mark")} if order else {}
        log = str(self.folder / "rebuild.log")
        arguments = ["rebuild", self.projector]
        child = begin("rebuild", command, self.place.store, arguments, self.environment | ordered, log)
        return child.await_end(CHILD_S)

    def log(self) -> str:
        return (self.folder / "rebuild.log").read_text("utf-8")[-2_000:]

    def generations(self) -> dict[str, str]:
        return {g.name: g.state for g in ledger.generations(self.stage.connection, self.projector)}


@pytest.fixture
def scene(store: str, database: str, address: Callable[[str], str], tmp_path: Path) -> Iterator[Scene]:
    place, projector = PLACES[store], f"k{uuid.uuid4().hex[:10]}"
    where = database if store == "postgres" else address(place.server)
    module = place.projection.__module__
    given = {"projection": f"{module}:{place.projection.__name__}", "store": store, "batch": 100}
    folder = tmp_path / "data"
    (folder / "postgres").mkdir(parents=True)  # by it the command knows that there is something
    environment = {
        "OUTBOX_DATA_DIR": str(folder),
        "OUTBOX_PREFIX": f"p{projector}",
        "OUTBOX_DATABASE__DSN": database,
        "OUTBOX_STORES": json.dumps({store: {place.setting: where}}),
        "OUTBOX_PROJECTORS": json.dumps({projector: given}),
    }
    settings = load(
        mode="embedded", data_dir=folder, prefix=f"p{projector}", database={"dsn": database},
        stores={store: {place.setting: where}}, projectors={projector: Projecting(**given)},
    )  # fmt: skip
    with staged(settings, place.projection()) as stage:
        for n in range(LASTING):
            stage.append(f"thing-lasting{n}", put(a=n, gone=1), put(gone=None))
        yield Scene(stage, place, where, projector, tmp_path, environment)
        with stage.side.open_sink(projector) as sink:
            for generation in place.left(where, projector):
                sink.drop(generation)


@contextmanager
def writing(scene: Scene) -> Iterator[None]:
    """A writer that goes on while the block does: changes, new streams, and keys that come and go."""

    def write(ended: threading.Event) -> None:
        with connected(scene.stage.side.write.dsn) as connection:
            n = 0
            while not ended.wait(WRITE_EVERY_S):
                n += 1
                append(connection, f"thing-moving{n % 40}", put(a=n, **{f"k{n % 3}": n if n % 2 else None}))

    with alongside(write):
        yield


@contextmanager
def watching(scene: Scene) -> Iterator[list[object]]:
    """What readers find all the while: through the product, by content, and past it, by the store's own alias."""
    seen: list[object] = []
    keys = [f"thing-lasting{n}#a" for n in range(LASTING)]
    wanted = {
        r.key: digest(r) for n in range(LASTING) for r in scene.stage.projection.records(f"thing-lasting{n}", {"a": n})
    }

    def read(ended: threading.Event) -> None:
        with ExitStack() as stack:
            connection = stack.enter_context(connected(scene.stage.side.write.dsn))
            sink = stack.enter_context(scene.stage.side.open_sink(scene.projector))
            asks = scene.place.asks
            ask = stack.enter_context(asks(scene.address, scene.projector)) if asks else lambda: LASTING
            while not ended.wait(READ_EVERY_S):
                serving = ledger.serving(connection, scene.projector)
                assert serving is not None
                found = {s.key: s.digest for s in sink.scan(serving, keys)}
                seen.append(found == wanted or sorted(wanted.items() - found.items()))
                seen.append(ask() == LASTING)

    def reading(ended: threading.Event) -> None:
        try:
            read(ended)
        except BaseException as error:  # a reader that is refused has found a hole
            seen.append(error)

    with alongside(reading):
        yield seen


@pytest.mark.parametrize(("store", "step"), CASES)
def test_a_killed_rebuild_shows_no_hole_and_the_next_one_ends_clean(scene: Scene, step: str) -> None:
    stage, name = scene.stage, scene.projector
    with stage.running():
        stage.wait_all()
        operations.rebuild(stage.side, projector=name, check=False)  # so that a build drops an older one
        with watching(scene) as seen:
            with writing(scene):
                assert scene.rebuild(STEPS[step]) == -signal.SIGKILL, scene.log()
            stage.wait_all()
            assert_equal_to_model(stage, name)
            assert scene.rebuild() == 0, scene.log()
            stage.wait_all()
    assert [found for found in seen if found is not True] == []
    assert len(seen) > 10
    assert_equal_to_model(stage, name)
    assert sorted(scene.generations().values()) == ["retired", "serving"]
    assert scene.place.left(scene.address, name) == set(scene.generations())


STORES_WITH_ALIAS = [name for name, place in PLACES.items() if place.asks]


def led_away(scene: Scene) -> None:
    """A build was killed when the alias had been switched and the row had not."""
    with scene.stage.running():
        scene.stage.wait_all()
    assert scene.rebuild(STEPS["between the alias and the row"]) == -signal.SIGKILL
    assert scene.generations() == {"g1": "serving", "g2": "building"}


@pytest.mark.parametrize("store", STORES_WITH_ALIAS)
def test_dropping_a_killed_build_never_drops_what_the_alias_shows(scene: Scene) -> None:
    led_away(scene)
    scene.stage.connection.execute(
        "UPDATE outbox.generation SET changed_at = changed_at - interval '2 hours' WHERE state = 'building'"
    )
    with watching(scene) as seen:
        # Its successor dies too, once it has dropped what was unfinished.
        assert scene.rebuild("discard:after:1") == -signal.SIGKILL, scene.log()
        asked = len(seen)
        until(lambda: len(seen) > asked + 4, "readers go on")
    assert [found for found in seen if found is not True] == []
    assert scene.place.left(scene.address, scene.projector) == {"g1"}


@pytest.mark.parametrize("store", STORES_WITH_ALIAS)
def test_a_projector_that_starts_leads_the_alias_back_to_what_it_feeds(scene: Scene) -> None:
    led_away(scene)
    with scene.stage.running(), scene.place.asks(scene.address, scene.projector) as ask:
        scene.stage.append("thing-lasting-late", put(a=1))
        scene.stage.wait_all()
        until(lambda: ask() == LASTING + 1, "the alias shows what the projector feeds")
