"""Questions to the stores, through the product's own wiring."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path

import pytest

from outbox.errors import DatabaseError, InvalidEvent, SettingsError, StoreError, StoreUnavailable, WaitTimeout
from outbox.log.statement import Appended, Token
from outbox.settings import Projecting, Settings
from projectors import ledger, wiring
from projectors.query import search as search_module
from projectors.query.protocol import DEPTH_MAX
from projectors.query.search import LIMIT_MAX, Search
from projectors.rebuild import rebuild
from projectors.wait import wait_for
from tests.conftest import Databases
from tests.integration.asking import (
    ANIMALS,
    EMBEDDED,
    MEMORY,
    NOBODY,
    World,
    animal,
    running,
    settings_of,
    until,
    world,
)


@pytest.fixture(params=[{"vectors": "chroma"} | MEMORY, EMBEDDED], ids=["memory", "embedded"], scope="module")
def asked(
    request: pytest.FixtureRequest, new_database: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Search]:
    settings = settings_of(new_database(), tmp_path_factory.mktemp("search"), request.param)
    with world(settings) as built, running(built), Search(built.side) as search:
        search.wait_for(built.populate(), 60)
        yield search


@pytest.fixture
def plain(database: str, tmp_path: Path) -> Iterator[World]:
    with world(settings_of(database, tmp_path, MEMORY)) as built:
        yield built


def test_a_semantic_question_finds_the_nearest_first(asked: Search) -> None:
    found = asked.semantic("a camel in the desert without water", 2)
    assert len(found) == 2
    assert found[0].key == "animal-camel"
    assert found[0].score > found[1].score


def test_a_text_question_finds_the_words(asked: Search) -> None:
    assert {h.key for h in asked.text("mud")} == {"animal-clam"}
    assert asked.text("nowhere") == []


def test_neighbours_are_told_by_direction_and_kind_of_edge(asked: Search) -> None:
    both = [(n.edge, n.direction, n.key) for n in asked.neighbours("animal-clam")]
    assert sorted(both) == [("eats", "in", "animal-walrus"), ("eats", "out", "animal-plankton")]
    assert [n.key for n in asked.neighbours("animal-clam", "out")] == ["animal-plankton"]
    assert asked.neighbours("animal-clam", edges=["fears"]) == []
    assert len(asked.neighbours("animal-clam", limit=1)) == 1


def test_paths_are_as_long_as_is_allowed_and_no_longer(asked: Search) -> None:
    (path,) = asked.paths("animal-walrus", "animal-plankton", depth=2)
    assert path.nodes == ("animal-walrus", "animal-clam", "animal-plankton")
    assert path.edges == ("eats", "eats")
    assert asked.paths("animal-walrus", "animal-plankton", depth=1) == []


def test_a_node_is_found_by_key_and_by_name(asked: Search) -> None:
    assert [h.key for h in asked.find("walrus")] == ["animal-walrus"]
    assert [h.key for h in asked.find("animal-walrus")] == ["animal-walrus"]


def test_a_hybrid_answer_says_who_gave_it_and_at_which_rank(asked: Search) -> None:
    found = asked.hybrid("walrus", 3)
    assert found[0].hit.key == "animal-walrus"
    assert set(found[0].ranks.values()) == {1}
    assert found[0].hit.store.split("+") == list(found[0].ranks)
    assert [f.hit.score for f in found] == sorted((f.hit.score for f in found), reverse=True)
    assert len(asked.hybrid("the sea", 1)) == 1


def test_a_question_asked_again_does_not_look_again_at_what_is_installed(
    asked: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def counted(**given: str) -> EntryPoints:
        looked.append(given["group"])
        return entry_points(**given)

    monkeypatch.setattr(wiring, "entry_points", counted)
    wiring._installed.cache_clear()
    assert asked.hybrid("walrus")
    assert looked
    looked.clear()
    assert asked.hybrid("clam")
    assert asked.semantic("clam")
    assert looked == []


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(asked: Search, limit: int) -> None:
    for ask in (asked.semantic, asked.text, asked.neighbours, asked.find, asked.hybrid):
        with pytest.raises(InvalidEvent, match=f"limit is {limit}"):
            ask("walrus", limit=limit)


def test_a_limit_above_the_most_is_cut_to_it(asked: Search) -> None:
    assert len(asked.semantic("sea", LIMIT_MAX * 10)) == len(ANIMALS)
    assert len(asked.hybrid("sea", LIMIT_MAX * 10)) == len(ANIMALS)


@pytest.mark.parametrize("depth", [0, DEPTH_MAX + 1])
def test_a_depth_out_of_bounds_is_refused(asked: Search, depth: int) -> None:
    with pytest.raises(InvalidEvent, match=f"depth is {depth}"):
        asked.paths("a", "b", depth)


def test_a_direction_that_is_none_is_refused(asked: Search) -> None:
    with pytest.raises(InvalidEvent, match="sideways"):
        asked.neighbours("a", "sideways")  # type: ignore[arg-type]


def test_one_waits_for_a_projector_by_its_name_or_its_stores(asked: Search) -> None:
    store = asked._side.plan("documents").store
    now = Token(asked._connected().execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0])
    asked.wait_for(now, 30, ["documents"])
    asked.wait_for(str(now.xid), 30, [store])
    asked.wait_for(now.xid, 30)
    asked.wait_for(now, 30, "documents")  # the letters of it were said to be no projectors


def test_waiting_for_nobody_and_for_no_token_is_refused(asked: Search) -> None:
    with pytest.raises(SettingsError, match="nobody"):
        asked.wait_for(1, projectors=["documents", "nobody"])
    with pytest.raises(InvalidEvent, match="soon"):
        asked.wait_for("soon")
    for token in (0, -1, 2**64, str(10**30)):
        with pytest.raises(InvalidEvent, match="is no token"):
            asked.wait_for(token)
    whole = Appended("a-1", 1, (1,), (), Token(1), False)  # what append gives, instead of its token
    with pytest.raises(InvalidEvent, match=r"Appended.*is no token: append gives one, as \.token"):
        asked.wait_for(whole)


def test_what_nobody_publishes_is_waited_for_in_vain(plain: World) -> None:
    with Search(plain.side) as search, pytest.raises(WaitTimeout, match="relay"):
        search.wait_for(plain.populate(), 0.05)


def test_before_the_first_generation_nothing_is_found(plain: World) -> None:
    with Search(plain.side) as search:
        assert search.text("walrus") == search.semantic("walrus") == search.find("walrus") == []
        assert search.hybrid("walrus") == []


def test_a_hybrid_question_is_answered_by_the_stores_that_are_up(database: str, tmp_path: Path) -> None:
    stores = {"vectors": "chroma", "graph": "memory", "documents": "elasticsearch"}
    dead = {"chroma": {"url": f"http://{NOBODY}"}, "elasticsearch": {"url": f"http://{NOBODY}"}}
    with world(settings_of(database, tmp_path, stores, stores=dead)) as built, running(built, ["graph"]):
        with Search(built.side) as search:
            search.wait_for(built.populate(), 30, ["graph"])
            for name in ("vectors", "documents"):
                serve(built, name)
            assert [f.hit.key for f in search.hybrid("walrus")] == ["animal-walrus"]
            for ask in (search.semantic, search.text):
                with pytest.raises(StoreUnavailable):
                    ask("walrus")


def test_a_hybrid_question_is_answered_beside_a_store_that_was_built_with_another_embedder(
    database: str, tmp_path: Path
) -> None:
    def embedding(with_: str) -> Settings:
        vectors = Projecting(projection="vectors", store="chroma", categories=("animal",), embedder=with_)
        return settings_of(database, tmp_path, {"documents": "tantivy"}, projectors={"vectors": vectors})

    with world(embedding("hashing:64")) as built, running(built), Search(built.side) as search:
        search.wait_for(built.populate(), 60)
        (both,) = search.hybrid("mud", 1)
        assert both.ranks.keys() == {"chroma", "tantivy"}
    with world(embedding("hashing:32")) as built, Search(built.side) as search:
        assert [f.ranks.keys() for f in search.hybrid("mud", 1)] == [{"tantivy"}]
        with pytest.raises(StoreError, match="dimension of 64, got 32"):
            search.semantic("mud")


def test_a_hybrid_question_fails_if_every_store_is_down(database: str, tmp_path: Path) -> None:
    dead = {"elasticsearch": {"url": f"http://{NOBODY}"}}
    with world(settings_of(database, tmp_path, {"documents": "elasticsearch"}, stores=dead)) as built:
        serve(built, "documents")
        with Search(built.side) as search, pytest.raises(StoreUnavailable):
            search.hybrid("walrus")


def test_a_question_that_no_store_answers_names_the_settings(database: str, tmp_path: Path) -> None:
    with world(settings_of(database, tmp_path, {"documents": "postgres"})) as built, Search(built.side) as search:
        with pytest.raises(SettingsError, match="projectors"):
            search.hybrid("walrus")
        with pytest.raises(SettingsError, match="'match'"):
            search.text("walrus")


def test_several_stores_of_one_kind_answer_in_turn(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"more": Projecting(projection="documents", store="memory", categories=("animal",))}
    settings = settings_of(database, tmp_path, {"documents": "memory"}, projectors=more)
    with world(settings) as built, running(built), Search(built.side) as search:
        search.wait_for(built.populate(), 30)
        assert [h.key for h in search.text("mud")] == ["animal-clam"] * 2
        assert [h.key for h in search.text("mud", 1)] == ["animal-clam"]
        with monkeypatch.context() as patched:
            patched.setattr(search_module, "LIMIT_MAX", 1)
            assert [h.key for h in search.text("mud", 5)] == ["animal-clam"]
        (only,) = search.hybrid("mud")
        assert dict(only.ranks) == {"memory": 1}


def test_another_generation_is_seen_soon(plain: World) -> None:
    with running(plain), Search(plain.side) as search:
        search.wait_for(plain.populate(), 30)
        assert [h.key for h in search.text("mud")] == ["animal-clam"]
        built = rebuild(plain.side.plan("documents"), plain.side.stations("documents"))
        until(lambda: search.text("mud") and search._serving["documents"][0].generation == built.generation, 5)


def test_what_was_waited_for_is_found_though_another_generation_serves_since(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projectors.query.search.SERVING_S", 3_600.0)
    with running(plain), Search(plain.side) as search:
        search.wait_for(plain.populate(), 30)
        assert [h.key for h in search.text("mud")] == ["animal-clam"]
        rebuild(plain.side.plan("documents"), plain.side.stations("documents"))
        token = plain.append("animal-eel", animal("eel", "An eel lives in the river", []))
        plain_wait(plain, token)  # from here on nobody feeds the generation that was asked last
        search.wait_for(plain.append("animal-heron", animal("heron", "A heron stands in the reeds", [])), 30)
        assert [h.key for h in search.text("reeds")] == ["animal-heron"]


def plain_wait(built: World, token: Token) -> None:
    """Wait without telling the search."""
    wait_for(built.connection, token, {"documents": built.side.plan("documents").topics}, 30)


def test_a_lost_connection_is_said_once_and_made_anew(plain: World) -> None:
    with Search(plain.side) as search:
        assert search.text("walrus") == []
        pid = search._connected().info.backend_pid
        plain.connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        until(
            lambda: plain.connection.execute(
                "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s", [pid]
            ).fetchone()[0]
        )
        with pytest.raises(DatabaseError):
            search.text("walrus")
        assert search.text("walrus") == []


def test_a_database_without_tables_says_how_to_make_them(empty_database: str, tmp_path: Path) -> None:
    with world(settings_of(empty_database, tmp_path, MEMORY)) as built, Search(built.side) as search:
        with pytest.raises(DatabaseError, match="outbox migrate"):
            search.text("walrus")


@pytest.mark.parametrize("store", sorted(entry_points(group="outbox.readers").names))
def test_every_reader_says_what_it_answers_without_being_opened(store: str, database: str, tmp_path: Path) -> None:
    nowhere = {store: {"url": "http://nowhere.invalid"}} if store != "memory" else {}
    with world(settings_of(database, tmp_path, {"documents": store}, stores=nowhere)) as built:
        answered = {
            q for q in ("nearest", "match", "neighbours", "paths", "find") if built.side.answers("documents", q)
        }
    graph = {"neighbours", "paths", "find"}
    assert (
        answered
        == {
            "chroma": {"nearest"},
            "elasticsearch": {"match"},
            "ladybug": graph,
            "memory": {"nearest", "match"} | graph,
            "neo4j": graph,
            "tantivy": {"match"},
        }[store]
    )


def serve(built: World, name: str) -> None:
    """As if the projector had built its first generation before its store went down."""
    ledger.begin_generation(built.connection, name, "g1", built.side.plan(name).topics)
    ledger.switch_generation(built.connection, name, "g1")
