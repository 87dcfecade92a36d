"""Status, verify, repair, rebuild and dead letters as functions from plain values to plain values."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from outbox.database import connected
from outbox.errors import DatabaseError, InvalidEvent, ProjectionError, SettingsError, VerificationFailed
from outbox.event import Event, NewEvent
from outbox.relay.cursor import load
from outbox.relay.lease import take
from outbox.settings import Projecting
from projectors import operations
from projectors.pulse import TIMEOUT_S, pulse, pulses
from projectors.record import Change, Document, Record
from projectors.wiring import open_read_side
from tests.integration.asking import ANIMALS, MEMORY, NOBODY, World, running, settings_of, until, world

EMBEDDED_TWO = {"graph": "ladybug", "documents": "tantivy"}


@pytest.fixture
def kept(database: str, tmp_path: Path) -> Iterator[World]:
    with world(settings_of(database, tmp_path, EMBEDDED_TWO)) as built:
        yield built


def settled(world: World) -> None:
    world.populate()
    # Asked in this order: what is published after the lags were read is in none of them.
    until(lambda: not waiting(world) and all(p["lag"] == 0 for p in operations.status(world.side)["projectors"]))


def waiting(world: World) -> int:
    return operations.status(world.side)["relay"]["waiting"]


# ---------------------------------------------------------------------------- status


def test_the_status_of_nothing_yet_is_zeros(kept: World) -> None:
    status = operations.status(kept.side)
    assert status["log"] == {"last_position": 0}
    assert status["relay"] == {"leader": None, "epoch": 0, "waiting": 0, "parked": [], "away": []}
    for projector in status["projectors"]:
        assert projector["health"] == "never ran"
        assert (projector["generation"], projector["lag"], projector["seen_s_ago"]) == (None, None, None)
        assert projector["answers"] is False
        assert "nothing" in projector["said"]


def test_relays_that_keep_the_outbox_and_do_not_run_are_named(kept: World) -> None:
    with connected(kept.side.write.dsn) as connection:
        for name in ("relay", "runs", "gone"):
            lease = take(connection, name, "test", 60.0)
            assert lease is not None
            load(connection, name, lease.epoch)
            if name == "gone":
                lease.release(connection)
    assert operations.status(kept.side)["relay"]["away"] == ["gone"]


def test_events_wait_until_a_relay_leads(kept: World) -> None:
    kept.populate()
    assert waiting(kept) == len(ANIMALS)
    assert operations.status(kept.side)["log"]["last_position"] == len(ANIMALS)
    with running(kept):
        until(lambda: waiting(kept) == 0)
        relay = operations.status(kept.side)["relay"]
    assert relay["leader"]
    assert relay["epoch"] == 1


def test_the_status_of_what_runs_names_generation_lag_and_health(kept: World) -> None:
    with running(kept):
        settled(kept)
        until(lambda: all(p["health"] == "ok" for p in operations.status(kept.side)["projectors"]))
        projectors = {p["projector"]: p for p in operations.status(kept.side)["projectors"]}
    assert set(projectors) == set(EMBEDDED_TWO)
    for name, projector in projectors.items():
        assert projector["store"] == EMBEDDED_TWO[name]
        assert projector["generation"] == "g1"
        assert projector["dead_letters"] == 0
        assert projector["answers"] is True
        assert "process" in projector["said"]
    assert json.loads(json.dumps(projectors)) == projectors


def test_a_lag_is_the_messages_published_and_not_applied(kept: World) -> None:
    with running(kept):
        settled(kept)
    with running(kept, []):
        kept.populate()
        until(lambda: waiting(kept) == 0)
    assert [p["lag"] for p in operations.status(kept.side)["projectors"]] == [len(ANIMALS)] * 2


def test_the_status_of_an_unmigrated_database_says_how_to_migrate(empty_database: str, tmp_path: Path) -> None:
    with open_read_side(settings_of(empty_database, tmp_path, MEMORY)) as side:
        with pytest.raises(DatabaseError, match="outbox migrate"):
            operations.status(side)


# ------------------------------------------------------------------------ a store's pulse


class Answering(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Answering,), {"code": request.param})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}/ignored"
        server.shutdown()
        serving.join()


@pytest.mark.parametrize(("http", "answers"), [(200, True), (401, True), (404, True), (503, False)], indirect=["http"])
def test_any_http_answer_but_a_servers_error_is_an_answer(http: str, answers: bool) -> None:
    found = pulse({"url": http})
    assert found.answers is answers
    assert ("503" in found.said) is not answers


@pytest.mark.parametrize("scheme", ["http", "https", "bolt", "neo4j", "neo4j+s"])
def test_a_closed_port_is_no_answer(scheme: str) -> None:
    found = pulse({"url": f"{scheme}://{NOBODY}"})
    assert found.answers is False
    assert "refused" in found.said


@pytest.mark.parametrize("scheme", ["http", "https", "bolt", "bolt+ssc"])
def test_a_server_that_is_silent_is_no_answer_within_the_time_out(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        found = pulses({"one": {"url": f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"}}, 0.3)
        assert time.monotonic() - began < TIMEOUT_S
    assert found["one"].answers is False
    assert "time" in found["one"].said or "no answer" in found["one"].said


def test_neo4j_and_the_other_servers_answer(address: Any, database: str) -> None:
    urls = {name: {"url": address(name)} for name in ("neo4j", "elasticsearch", "chroma")}
    found = pulses({**urls, "postgres": {"dsn": database}}, 20)
    assert {name: p.answers for name, p in found.items()} == dict.fromkeys([*urls, "postgres"], True)


def test_a_connection_that_closes_without_a_word_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closing = threading.Thread(target=lambda: server.accept()[0].recv(20) and None)
        closing.start()
        found = pulse({"url": f"bolt://127.0.0.1:{server.getsockname()[1]}"})
        closing.join()
    assert found.answers is False


def test_what_has_no_address_cannot_be_asked() -> None:
    assert pulse({}).answers is None
    assert pulse({"url": "redis://localhost"}).answers is None
    assert pulse({"url": "http://[::1"}).answers is False
    assert pulse({"dsn": f"postgresql://{NOBODY}/x"}).answers is False
    assert pulse({"dsn": "mysql://u:secret@h/db"}).answers is None


@pytest.mark.parametrize("dsn", ["host localhost password=secret", "postgresql://[::1 secret", "x"])
def test_a_dsn_that_is_none_is_said_to_be_none(dsn: str) -> None:
    """It ended the thread that asked, in a traceback, and was then said not to answer within two seconds."""
    found = pulse({"dsn": dsn})
    assert (found.answers, found.said) == (False, "its dsn is no address of PostgreSQL")


# ------------------------------------------------------------------- verify and repair


def test_equal_stores_are_clean(kept: World) -> None:
    told: list[str] = []
    with running(kept):
        settled(kept)
        reports = operations.verify(kept.side, tell=lambda done, of, what: told.append(what))
    assert [(r["projector"], r["records"], r["differences"], r["repaired"]) for r in reports] == [
        ("graph", len(ANIMALS), [], 0),
        ("documents", len(ANIMALS), [], 0),
    ]
    assert set(told) == set(EMBEDDED_TWO)
    assert json.loads(json.dumps(reports)) == reports


def test_what_differs_is_named_and_repaired_and_nothing_else(kept: World) -> None:
    with running(kept):
        settled(kept)
    wrong = Change("animal-clam", "animal-clam", 1, Document("animal-clam", "x", "x", "x"), repair=True)
    extra = Change("animal-ghost", "animal-ghost", 1, Document("animal-ghost", "x", "x", "x"))
    gone = Change("animal-camel", "animal-camel", 1, None, repair=True)
    with kept.side.open_sink("documents") as sink:
        sink.apply("g1", [wrong, extra, gone])
    (report,) = operations.verify(kept.side, projectors=["documents"])
    kinds = {d["key"]: d["kind"] for d in report["differences"]}
    assert kinds == {"animal-clam": "different", "animal-ghost": "extra", "animal-camel": "missing"}
    assert (report["different"], report["extra"], report["missing"], report["stale"]) == (1, 1, 1, 0)
    (repaired,) = operations.verify(kept.side, projectors=["documents"], repair=True)
    assert (repaired["repaired"], repaired["differences"]) == (3, [])


def test_a_wiped_store_lacks_every_record(kept: World) -> None:
    with running(kept):
        settled(kept)
    with kept.side.open_sink("documents") as sink:
        sink.drop("g1")
    (report,) = operations.verify(kept.side, projectors=["documents"], repair=True)
    assert (report["repaired"], report["records"], report["differences"]) == (len(ANIMALS), len(ANIMALS), [])


def test_an_unknown_projector_and_one_that_never_ran_are_named(kept: World) -> None:
    with pytest.raises(SettingsError, match="nothing"):
        operations.verify(kept.side, projectors=["nothing"])
    with pytest.raises(SettingsError, match="outbox up"):
        operations.verify(kept.side)


# ---------------------------------------------------------------------------- rebuild


def test_a_rebuild_serves_a_new_generation_and_can_be_undone(kept: World) -> None:
    with running(kept):
        settled(kept)
        built = operations.rebuild(kept.side, projector="documents", tell=lambda *_: None)
        assert (built["generation"], built["records"]) == ("g2", len(ANIMALS))
        back = operations.rebuild(kept.side, projector="documents", rollback=True)
        assert back == {"projector": "documents", "generation": "g1"}


def test_nothing_to_go_back_to_is_said(kept: World) -> None:
    with pytest.raises(ProjectionError, match="nothing to roll back"):
        operations.rebuild(kept.side, projector="documents", rollback=True)


class Fickle:
    """A projection that breaks its promise: not the same records twice."""

    categories = ("animal",)

    def __init__(self) -> None:
        self.times = 0

    def fold(self, state: Any, event: Event) -> Any:
        return event.data

    def records(self, stream: str, state: Any) -> list[Record]:
        self.times += 1
        return [Document(stream, "animal", "", str(self.times))]


def test_a_generation_that_differs_from_the_log_is_not_switched_to(database: str, tmp_path: Path) -> None:
    fickle = {"fickle": Projecting(projection="fickle", store="tantivy")}
    settings = settings_of(database, tmp_path, {}, projectors=fickle)
    with open_read_side(settings, {"fickle": Fickle()}) as side, world(settings) as asked:
        built = World(side, asked.connection)
        with running(built):
            built.populate()
            until(lambda: waiting(built) == 0)
            with pytest.raises(VerificationFailed, match="not switched"):
                operations.rebuild(side, projector="fickle")
            assert built.serving("fickle") == "g1"
            assert operations.rebuild(side, projector="fickle", check=False)["generation"] == "g2"


# ----------------------------------------------------------------------- dead letters


class Picky:
    """Cannot fold camels until it has been mended."""

    categories = ("animal",)

    def __init__(self) -> None:
        self.mended = False

    def fold(self, state: Any, event: Event) -> Any:
        if event.data["name"] == "camel" and not self.mended:
            raise ValueError("no camels")
        return event.data

    def records(self, stream: str, state: Any) -> list[Record]:
        return [Document(stream, "animal", state["name"], state["text"])]


def test_a_parked_stream_is_listed_counted_and_tried_again(database: str, tmp_path: Path) -> None:
    picky, settings = (
        Picky(),
        settings_of(database, tmp_path, {}, projectors={"picky": Projecting(projection="picky", store="tantivy")}),
    )
    with open_read_side(settings, {"picky": picky}) as side, world(settings) as asked:
        built = World(side, asked.connection)
        with running(built):
            built.populate()
            (letter,) = until(lambda: operations.dead_letters(side))
            assert (letter["projector"], letter["stream"], letter["version"]) == ("picky", "animal-camel", 1)
            assert "no camels" in letter["error"]
            (projector,) = operations.status(side)["projectors"]
            assert projector["dead_letters"] == 1
            operations.dead_letters(side, projector="picky", retry=True, streams=["animal-camel"])
            until(lambda: operations.dead_letters(side)[0]["attempts"] == 2)
            picky.mended = True
            operations.dead_letters(side, retry=True)
            until(lambda: not operations.dead_letters(side))
            (report,) = operations.verify(side)
            assert (report["records"], report["differences"]) == (len(ANIMALS), [])


def test_an_unknown_projectors_dead_letters_are_refused(kept: World) -> None:
    with pytest.raises(SettingsError, match="nothing"):
        operations.dead_letters(kept.side, projector="nothing", retry=True)


# ----------------------------------------------------------------------------- search


def test_each_kind_of_question_gives_plain_values(kept: World) -> None:
    with running(kept):
        token = kept.populate()
        hits = operations.search(kept.side, text="mud", how="text", token=str(token))
        assert [h["key"] for h in hits] == ["animal-clam"]
        assert operations.search(kept.side, text="walrus", how="find")[0]["key"] == "animal-walrus"
        assert operations.search(kept.side, text="walrus")[0]["ranks"]
        around = operations.search(kept.side, text="animal-walrus", how="neighbours", direction="out")
        assert [n["key"] for n in around] == ["animal-clam"]
        (path,) = operations.search(kept.side, text="animal-walrus", how="paths", target="animal-plankton")
        assert path["edges"] == ("eats", "eats")


@pytest.mark.parametrize(("how", "said"), [("paths", "--to"), ("loudly", "loudly")])
def test_a_question_that_is_none_says_what_it_lacks(kept: World, how: str, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        operations.search(kept.side, text="x", how=how)


def test_what_was_deleted_is_not_found(kept: World) -> None:
    with running(kept):
        kept.populate()
        token = kept.append("animal-clam", NewEvent("entity.deleted", {}))
        assert operations.search(kept.side, text="mud", how="text", token=str(token)) == []
