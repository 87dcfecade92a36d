"""The whole path on real servers, with real processes: Kafka into Chroma, Neo4j and Elasticsearch."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from outbox.settings import load
from projectors import ledger
from projectors.query.search import Search
from projectors.wiring import ReadSide, open_read_side
from tests.alongside import alongside
from tests.conftest import Address
from tests.e2e.corpus import copy_library, expected_keys
from tests.e2e.outbox_command import answer, outbox, process

STORES = {"vectors": "chroma", "graph": "neo4j", "documents": "elasticsearch"}
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Stack:
    """Processes that run, and how to ask them."""

    settings: dict[str, str]
    folder: Path
    corpus: Path
    projectors: dict[str, str]
    """Kind to projector's name."""

    def ask(self, *arguments: str) -> object:
        return answer(*arguments, settings=self.settings, cwd=self.folder)


@pytest.fixture(scope="module")
def stack(address: Address, module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder, mark = tmp_path_factory.mktemp("servers"), uuid.uuid4().hex[:8]
    projectors = {kind: f"{kind}_{mark}" for kind in STORES}
    settings = {
        "OUTBOX_MODE": "servers",
        "OUTBOX_PREFIX": f"e2e-{mark}".replace("-", "."),
        "OUTBOX_DATABASE__DSN": module_database,
        "OUTBOX_KAFKA__BOOTSTRAP": address("kafka"),
        "OUTBOX_STORES__CHROMA__URL": address("chroma"),
        "OUTBOX_STORES__NEO4J__URL": address("neo4j"),
        "OUTBOX_STORES__ELASTICSEARCH__URL": address("elasticsearch"),
        "OUTBOX_PROJECTORS": json.dumps({projectors[k]: {"projection": k, "store": s} for k, s in STORES.items()}),
    }
    with ExitStack() as running:
        running.enter_context(process("relay", settings=settings, cwd=folder))
        for name in projectors.values():
            running.enter_context(process("project", name, settings=settings, cwd=folder))
        yield Stack(settings, folder, copy_library(folder / "stdlib"), projectors)


@pytest.fixture
def side(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadSide]:
    for name, value in stack.settings.items():
        monkeypatch.setenv(name, value)
    with open_read_side(load()) as opened:
        yield opened


def wait_until_applied(side: ReadSide) -> None:
    with side.write.connection() as connection, Search(side) as search:
        row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        search.wait_for(row[0], timeout_s=400)


def test_the_library_goes_through_kafka_into_every_store(stack: Stack, side: ReadSide) -> None:
    report = stack.ask("ingest", f"stdlib={stack.corpus}")
    assert isinstance(report, dict)
    assert report["failed"] == []
    assert report["events"] == report["files"] == sum(1 for _ in stack.corpus.rglob("*.py"))
    wait_until_applied(side)
    expected = expected_keys(stack.corpus)
    for name in side.projecting:
        with side.write.connection() as connection, side.open_sink(name) as sink:
            generation = ledger.serving(connection, name)
            assert generation is not None
            assert {s.key for s in sink.scan(generation)} == expected, name


def test_every_record_equals_the_log(stack: Stack) -> None:
    reports = stack.ask("verify")
    assert isinstance(reports, list)
    assert [r["differences"] for r in reports] == [[], [], []]
    assert all(r["records"] > 10_000 for r in reports)


def test_ingesting_again_appends_nothing(stack: Stack) -> None:
    report = stack.ask("ingest", f"stdlib={stack.corpus}")
    assert isinstance(report, dict)
    assert report["events"] == 0


def test_each_kind_of_question_is_answered_by_its_store(stack: Stack) -> None:
    for how, text, store in [
        ("semantic", "parse a date from text", "chroma"),
        ("text", "decode json document", "elasticsearch"),
        ("neighbours", "python-json.decoder", "neo4j"),
    ]:
        answers = stack.ask("search", text, "--how", how)
        assert isinstance(answers, list)
        assert answers, how
        assert {a["store"] for a in answers} == {store}
    hybrid = stack.ask("search", "wrap text to lines of a width")
    assert isinstance(hybrid, list)
    assert {s for a in hybrid for s in a["ranks"]} >= {"chroma", "elasticsearch"}
    paths = stack.ask("search", "python-json", "--how", "paths", "--to", "python-json.decoder")
    assert isinstance(paths, list)
    assert paths[0]["nodes"] == ["python-json", "python-json.decoder"]


def test_what_is_edited_and_deleted_follows_into_every_store(stack: Stack, side: ReadSide) -> None:
    heapq = stack.corpus / "heapq.py"
    heapq.write_text(heapq.read_text("utf-8") + '\n\ndef quokka_zanzibar():\n    """A phrase apart."""\n', "utf-8")
    (stack.corpus / "this.py").unlink()
    report = stack.ask("ingest", f"stdlib={stack.corpus}")
    assert isinstance(report, dict)
    assert (report["changed"], report["deleted"]) == (1, 1)
    wait_until_applied(side)
    expected = expected_keys(stack.corpus)
    assert "python-heapq#quokka_zanzibar" in expected
    assert "python-this" not in expected
    for name in side.projecting:
        with side.write.connection() as connection, side.open_sink(name) as sink:
            generation = ledger.serving(connection, name)
            assert generation is not None
            assert {s.key for s in sink.scan(generation)} == expected, name


@pytest.mark.parametrize("kind", list(STORES))
def test_a_rebuild_is_clean_and_no_search_meanwhile_is_empty(stack: Stack, side: ReadSide, kind: str) -> None:
    questions = {
        "vectors": lambda s: s.semantic("parse a date from text", 3),
        "graph": lambda s: s.neighbours("python-json.decoder", limit=3),
        "documents": lambda s: s.text("decode json document", 3),
    }
    empty, asked = [], [0]

    def ask(ended: threading.Event) -> None:
        with Search(side) as search:
            while not ended.is_set():
                asked[0] += 1
                if not questions[kind](search):
                    empty.append(asked[0])

    with alongside(ask):
        built = stack.ask("rebuild", stack.projectors[kind])
    assert isinstance(built, dict)
    assert built["records"] == len(expected_keys(stack.corpus))
    assert empty == []
    assert asked[0] > 10
    (report,) = answer("verify", stack.projectors[kind], settings=stack.settings, cwd=stack.folder)
    assert report["differences"] == []
    assert report["generation"] == built["generation"]


def test_a_record_changed_by_hand_is_named_and_repaired(stack: Stack, side: ReadSide) -> None:
    name = stack.projectors["documents"]
    with side.write.connection() as connection, side.open_sink(name) as sink:
        generation = ledger.serving(connection, name)
        assert generation is not None
        (stored,) = sink.scan(generation, ["python-json.decoder"])
    from elasticsearch import Elasticsearch

    with Elasticsearch(stack.settings["OUTBOX_STORES__ELASTICSEARCH__URL"]) as client:
        client.update(index=name, id=stored.key, doc={"title": "tampered"}, refresh=True)
    done = outbox("verify", name, "--json", settings=stack.settings, cwd=stack.folder)
    assert done.returncode == 1
    (report,) = json.loads(done.stdout)
    assert [d["key"] for d in report["differences"]] == ["python-json.decoder"]
    repaired = outbox("verify", name, "--repair", "--json", settings=stack.settings, cwd=stack.folder)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert json.loads(repaired.stdout)[0]["repaired"] == 1
