"""Answers for people: what the lines and tables must hold, whatever characters the stores gave."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from projectors.cli import show

HIT = {"key": "a-1", "score": 0.5, "store": "tantivy", "kind": "animal", "title": "t", "snippet": "", "properties": {}}
PROJECTOR = {
    "projector": "documents",
    "store": "tantivy",
    "generation": "g7",
    "lag": 42,
    "health": "ok",
    "seen_s_ago": 3.2,
    "answers": True,
    "said": "",
    "dead_letters": 5,
}
REPORT = {
    "projector": "documents",
    "store": "tantivy",
    "generation": "g1",
    "records": 12,
    "missing": 1,
    "stale": 0,
    "extra": 0,
    "different": 0,
    "parked": 0,
    "repaired": 0,
    "seconds": 0.126,
    "differences": [{"key": "a-1#x[y]", "stream": "a-1", "kind": "missing", "version": 3}],
}


def answers(how: str, *given: dict[str, Any]) -> str:
    out = io.StringIO()
    show.show_answers(given, how, Console(file=out, width=200))
    return out.getvalue()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")


def test_nothing_found_is_said() -> None:
    assert "nothing found" in answers("hybrid")


def test_a_hit_is_a_line_and_its_snippet_another() -> None:
    assert answers("text", HIT).split() == ["a-1", "animal", "0.5000", "tantivy"]
    lines = answers("text", HIT | {"snippet": "one\n two  three"}).splitlines()
    assert lines[1].strip() == "one two three"


def test_a_long_snippet_is_cut() -> None:
    assert len(answers("text", HIT | {"snippet": "x" * 10_000}).splitlines()[1].strip()) == show.SNIPPET_LENGTH


def test_brackets_are_shown_and_not_taken_for_markup() -> None:
    shown = answers("text", HIT | {"key": "a-[red]b", "kind": "[/]", "snippet": "list[int] [/bold]"})
    for word in ("a-[red]b", "[/]", "list[int] [/bold]"):
        assert word in shown


def test_neighbours_show_which_way_the_edge_goes() -> None:
    one = {"key": "b-1", "kind": "animal", "name": "b", "edge": "eats", "direction": "out", "store": "ladybug"}
    out, back = answers("neighbours", one, one | {"direction": "in"}).splitlines()
    assert out.split() == ["-->", "eats", "b-1", "animal"]
    assert back.startswith("<--")


def test_a_path_is_one_line_of_nodes_and_edges() -> None:
    path = {"nodes": ("a", "b", "c"), "edges": ("eats", "fears"), "store": "ladybug"}
    assert answers("paths", path).strip() == "a -eats- b -fears- c"


def test_the_status_shows_every_projector_and_what_is_parked(wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    relay = {"leader": "host:1", "epoch": 3, "waiting": 9, "parked": [{"topic": "outbox.a", "key": "a-[1]"}]}
    relay["away"] = ["old[1]"]
    dead = PROJECTOR | {"projector": "graph", "store": "neo4j", "answers": False, "said": "Connection [refused]"}
    new = PROJECTOR | {"projector": "new", "generation": None, "lag": None, "seen_s_ago": None, "answers": None}
    show.show_status({"log": {"last_position": 77}, "relay": relay, "projectors": [PROJECTOR, dead, new]})
    shown = capsys.readouterr().out
    for word in (
        "position 77",
        "relay: 9",
        "host:1",
        "epoch 3",
        "outbox.a a-[1]",
        "relay old[1] does",
        "ok (3 s ago)",
        "g7",
        "42",
        "5",
    ):
        assert word in shown
    assert "no answer from neo4j: Connection [refused]" in shown
    assert "tantivy:" not in shown


def test_that_none_leads_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    relay = {"leader": None, "epoch": 0, "waiting": 0, "parked": [], "away": []}
    show.show_status({"log": {"last_position": 0}, "relay": relay, "projectors": []})
    assert "none leads" in capsys.readouterr().out


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "order-1:key:2[x]"
    show.show_answers([{**HIT, "key": name, "snippet": "a :key: b"}], "text")
    parked = [{"topic": "t", "key": name}]
    show.show_status(
        {
            "log": {"last_position": 1},
            "relay": {"leader": None, "epoch": 0, "waiting": 0, "parked": parked, "away": []},
            "projectors": [],
        }
    )
    show.show_verify([{**REPORT, "differences": [{"key": name, "stream": name, "kind": "missing", "version": 3}]}])
    out = capsys.readouterr().out
    assert out.count(name) == 4
    assert "a :key: b" in out


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_dead_letters_stream_is_not_cut_short(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    letter = {"projector": "p", "stream": "abcdefghij" * 6, "version": 3, "type": "x", "attempts": 1, "error": ""}
    show.show_dead_letters([letter])
    rows = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows) == letter["stream"]


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert "a\\x1b[2Jb" in answers("text", {**HIT, "snippet": "a\x1b[2Jb"})


def test_a_difference_is_named_with_its_stream_and_version(wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    show.show_verify([REPORT])
    shown = capsys.readouterr().out
    assert "missing tantivy a-1#x[y] (stream a-1@3)" in shown
    assert "0.13" in shown


def test_dead_letters_show_why(wide: None, capsys: pytest.CaptureFixture[str]) -> None:
    show.show_dead_letters([])
    assert "no dead letters" in capsys.readouterr().out
    letter = {"projector": "p", "stream": "a-[1]", "version": 4, "type": "t.y", "attempts": 2, "error": "no [good]"}
    show.show_dead_letters([letter])
    shown = capsys.readouterr().out
    for word in ("a-[1]", "4", "t.y", "2", "no [good]"):
        assert word in shown


def test_a_verification_says_which_streams_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The table showed nothing but noughts while records were missing."""
    show.show_verify([{**REPORT, "missing": 0, "differences": [], "parked": 3}])
    shown = " ".join(capsys.readouterr().out.split())
    assert "documents: 3 stream(s) cannot be projected and are left out" in shown
    assert "dead-letters" in shown
    show.show_verify([REPORT])
    assert "left out" not in capsys.readouterr().out
