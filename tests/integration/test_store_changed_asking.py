"""What people and programs are told of a projector whose ``store`` was changed: never that an empty store is all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from outbox import NewEvent, append
from outbox.errors import StoreChanged
from outbox.settings import Projecting
from projectors import operations, running
from projectors.cli.show import show_rebuild, show_status
from projectors.query.search import Search
from projectors.wiring import open_read_side
from tests.integration.asking import World, settings_of, until, world
from tests.integration.asking import running as run
from tests.integration.test_app import Customers

FOUND = ["animal-clam"]


@pytest.fixture
def worlds(database: str, tmp_path: Path) -> Iterator[tuple[World, World]]:
    """The same projector under two settings, in Tantivy and in memory; built in Tantivy."""
    settings = settings_of(database, tmp_path, {"documents": "tantivy"})
    moved = {"documents": settings.projectors["documents"].model_copy(update={"store": "memory"})}
    with ExitStack() as stack:
        before = stack.enter_context(world(settings))
        after = stack.enter_context(world(settings.model_copy(update={"projectors": moved})))
        with run(before), Search(before.side) as search:
            search.wait_for(before.populate(), 30)
        yield before, after


def found(search: Search) -> list[str]:
    return [hit.key for hit in search.text("mud")]


def test_readers_ask_the_store_that_what_serves_is_in(worlds: tuple[World, World]) -> None:
    """Those that have heard of the change already, and those that have not heard of it after the switch."""
    before, after = worlds
    with Search(before.side) as late, Search(after.side) as early:
        assert (found(late), found(early)) == (FOUND, FOUND)
        assert [fused.hit.key for fused in early.hybrid("mud")] == FOUND
        operations.rebuild(after.side, projector="documents")
        until(lambda: [hit.store for hit in late.text("mud")] == ["memory"])
        until(lambda: [hit.store for hit in early.text("mud")] == ["memory"])
        assert (found(late), found(early)) == (FOUND, FOUND)


def test_a_question_that_only_the_store_of_the_settings_answers_is_refused(worlds: tuple[World, World]) -> None:
    _, after = worlds
    with Search(after.side) as search:
        with pytest.raises(StoreChanged, match=r"documents.*are in tantivy, and its settings name memory"):
            search.find("clam")


def test_a_reader_that_cannot_reach_what_serves_says_so(worlds: tuple[World, World], tmp_path: Path) -> None:
    _, after = worlds
    wrong = {**after.side.settings.stores, "tantivy": {"url": "nowhere"}}
    with open_read_side(after.side.settings.model_copy(update={"stores": wrong})) as side, Search(side) as search:
        for ask in (search.text, search.hybrid):
            with pytest.raises(StoreChanged, match=r"are in tantivy.*name memory.*tantivy cannot be asked: .*url"):
                ask("mud")


def test_status_says_where_what_serves_is_and_what_to_do(
    worlds: tuple[World, World], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = worlds
    (one,) = operations.status(before.side)["projectors"]
    assert (one["store"], one["serves_in"], one["changed"]) == ("tantivy", "tantivy", "")
    (one,) = (status := operations.status(after.side))["projectors"]
    assert (one["store"], one["serves_in"]) == ("memory", "tantivy")
    assert "`outbox rebuild documents`" in one["changed"]
    show_status(status)
    assert "store changed documents" in capsys.readouterr().out
    operations.rebuild(after.side, projector="documents")
    (one,) = operations.status(after.side)["projectors"]
    assert (one["generation"], one["serves_in"], one["changed"]) == ("g2", "memory", "")


@pytest.mark.parametrize("how", [{}, {"quick": True}, {"repair": True}, {"repair": True, "dry_run": True}])
def test_verify_compares_no_empty_store_and_repairs_none(worlds: tuple[World, World], how: dict[str, bool]) -> None:
    """It named every record as missing, and wrote them all under the checkpoints of another store."""
    before, after = worlds
    with pytest.raises(StoreChanged, match="outbox rebuild documents"):
        operations.verify(after.side, **how)
    (report,) = operations.verify(before.side)
    assert report["differences"] == []


def test_a_rebuild_says_what_is_kept_where(worlds: tuple[World, World], capsys: pytest.CaptureFixture[str]) -> None:
    _, after = worlds
    show_rebuild(operations.rebuild(after.side, projector="documents", dry_run=True), rollback=False, dry_run=True)
    done = operations.rebuild(after.side, projector="documents")
    show_rebuild(done, rollback=False, dry_run=False)
    left = {**done, "elsewhere": [{"generation": "g1", "store": "tantivy", "why": "it is [down]"}]}
    show_rebuild(left, rollback=False, dry_run=False)
    said = capsys.readouterr().out
    assert "g1 would be kept for a rollback in tantivy" in said
    assert "g1 is kept in tantivy: to go back to it, set projectors.documents.store to 'tantivy', then" in said
    assert "g1 stays in tantivy, where it could not be dropped (it is [down]); the next rebuild tries again" in said


def test_an_app_whose_store_was_changed_raises_and_can_be_rebuilt(database: str, tmp_path: Path) -> None:
    settings = settings_of(database, tmp_path, {})
    given = {"customers": Customers()}
    with running(projections={"customers": (Customers(), "tantivy")}, settings=settings) as app:
        with psycopg.connect(app.dsn) as connection:
            event = NewEvent("entity.patched", {"properties": {"name": "Ada", "city": "London"}})
            done = append(connection, "customer-42", event)
        app.wait_for(done.token)
    moved = {"projections": {"customers": (Customers(), "memory")}, "settings": settings}
    with pytest.raises(StoreChanged, match=r"customers: its records .* in tantivy"), running(**moved) as app:
        app.wait_for(done.token, timeout_s=3_600)
        until(lambda: app.threads._failures)
    named = {"customers": Projecting(projection="customers", store="memory")}
    with open_read_side(settings.model_copy(update={"projectors": named}), given) as side:
        operations.rebuild(side, projector="customers")
    with running(**moved) as app:
        app.wait_for(done.token)
        assert [(hit.key, hit.store) for hit in app.search.text("london")] == [("customer-42", "memory")]
        app.verify()
