"""Answers for people: what the lines and tables must hold, whatever characters the stores gave."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from outbox.cli.tables import Kind, console, print_table
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
    dead |= {"health": "nobody [answers]"}
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
        "fails graph: nobody [answers]",
        "fails (3 s ago)",
        "g7",
        "42",
        "5",
    ):
        assert word in shown
    assert "no answer from neo4j: Connection [refused]" in shown
    assert "tantivy:" not in shown


def test_a_store_that_was_changed_is_one_line_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    changed = (
        "documents: its records (g1) are in tantivy, and its settings name elasticsearch: either set [this] or that"
    )
    relay = {"leader": "host:1", "epoch": 3, "waiting": 0, "parked": [], "away": []}
    projectors = [PROJECTOR | {"changed": ""}, PROJECTOR | {"changed": changed}]
    show.show_status({"log": {"last_position": 0}, "relay": relay, "projectors": projectors})
    assert [line for line in capsys.readouterr().out.splitlines() if "changed" in line] == [f"store changed {changed}"]


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


ELASTIC = {"projector": "documents", "store": "elasticsearch"}
STREAM = "customer-0190a5b2-7c3f-7abc-9def-0123456789ab"
LETTER = {
    "projector": "documents",
    "stream": STREAM,
    "version": 1_204_412,
    "type": "entity.upserted",
    "attempts": 12,
    "error": "ValueError: could not convert string to float: 'what was in the field' at https://example.org/the-reason",
}


def a_status() -> None:
    fails = {**PROJECTOR, **ELASTIC, "health": f"the store refuses {STREAM}", "answers": False, "said": "refused"}
    relay = {"leader": "worker-1:4123", "epoch": 3, "waiting": 9, "parked": [], "away": []}
    projectors = [{**PROJECTOR, **ELASTIC, "lag": 104_233}, fails]
    show.show_status({"log": {"last_position": 77}, "relay": relay, "projectors": projectors})


def a_verification() -> None:
    one = {**REPORT, **ELASTIC, "records": 1_204_412, "different": 1_204_411, "repaired": 1_204_410, "seconds": 1212.1}
    show.show_verify([one, {**one, "projector": "vectors"}])


def dead_letters() -> None:
    show.show_dead_letters([LETTER, LETTER])


def parked_rows() -> None:
    columns: dict[str, Kind] = {"topic": "name", "key": "name", "seq": "number", "since": "name", "reason": "text"}
    reason = "Broker: Message size too large"
    print_table(console(), columns, [("outbox.customer", STREAM, "1234567", "2026-01-02 03:04:05", reason)])


@pytest.mark.parametrize("columns", ["40", "60", "80", "120", None])
@pytest.mark.parametrize(
    ("show_it", "whole"),
    [
        (a_status, ["projector", "documents", "elasticsearch", "generation", "letters", "104233", STREAM]),
        (a_verification, ["different", "repaired", "elasticsearch", "1204412", "1204411", "1204410", "1212.10"]),
        (dead_letters, [STREAM, "1204412", "entity.upserted", "ValueError:", "https://example.org/the-reason"]),
        (parked_rows, [STREAM, "outbox.customer", "1234567", "2026-01-02 03:04:05", "Message"]),
    ],
)
def test_no_word_of_a_table_is_broken_however_narrow_the_terminal(
    show_it: Callable[[], None],
    whole: list[str],
    columns: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    show_it()
    out = capsys.readouterr().out
    for word in whole:
        assert word in out


def test_an_ordinary_status_and_verification_are_tables_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    a_status()
    show.show_verify([{**REPORT, **ELASTIC, "records": 1_204_412}])
    heads = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("projector ")]
    assert [len(head) for head in heads] == [7, 8]


def test_in_a_file_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    dead_letters()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(LETTER["error"]) for line in lines[1:])


def test_a_texts_lines_are_not_single_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show.show_dead_letters([{**LETTER, "stream": STREAM[:33], "type": "a.b", "error": "word " * 20}])
    shown = capsys.readouterr().out
    assert max(line.count("word") for line in shown.splitlines()) >= 4


def test_a_long_text_among_an_events_data_is_left_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    event = {"id": "x", "type": "t.y", "position": 7, "at": "now", "data": {"name": "x" * 500, "note": "y"}}
    show.show_dead_letter({**LETTER, "generation": "g1", "waiting": 3, "event": event})
    assert "x" * 500 in capsys.readouterr().out


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
