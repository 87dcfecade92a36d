"""Bad input to the command ends in one clear line and a non-zero exit, never in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.outbox_command import outbox

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


def refused(done: object, *said: str) -> None:
    assert done.returncode not in (0, 130), done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1, done.stderr
    for word in said:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"OUTBOX_MODE": "sideways"}, ["mode", "embedded"]),
        ({"OUTBOX_DATABSE__DSN": "x"}, ["OUTBOX_DATABSE__DSN", "databse"]),
        ({"OUTBOX_DATABASE__DNS": "x"}, ["database.dns"]),
        ({"OUTBOX_RELAY__LEASE_S": "soon"}, ["relay.lease_s"]),
        ({"OUTBOX_CONFIG": "missing.toml"}, ["missing.toml"]),
        ({"OUTBOX_MODE": "servers"}, ["database.dsn"]),
        ({"OUTBOX_PREFIX": "a b"}, ["prefix"]),
        ({"OUTBOX_DATA_DIR": "~nobody-of-this-name/x"}, ["data_dir", "~nobody-of-this-name"]),
        ({"OUTBOX_RELAY__LEASE_S": "inf"}, ["relay.lease_s"]),
        ({"OUTBOX_RELAY__SLEEP_MAX_S": "inf"}, ["relay.sleep_max_s"]),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, str], said: list[str]) -> None:
    refused(outbox("status", settings=settings, cwd=tmp_path), *said)


def test_a_malformed_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.toml").write_text("mode = [")
    refused(outbox("status", settings={}, cwd=tmp_path), "settings")


@pytest.mark.parametrize(
    "command",
    [
        ["migrate"],
        ["relay"],
        ["project"],
        ["events"],
        ["status"],
        ["verify"],
        ["append", "a-1", "entity.deleted", "{}"],
    ],
)
def test_a_wrong_dsn_is_one_line(tmp_path: Path, command: list[str]) -> None:
    settings = {
        "OUTBOX_MODE": "servers",
        "OUTBOX_DATABASE__DSN": NOWHERE,
        "OUTBOX_KAFKA__BOOTSTRAP": "127.0.0.1:1",
    }
    refused(outbox(*command, settings=settings, cwd=tmp_path), "127.0.0.1:1")


@pytest.mark.parametrize(
    "command", [["relay"], ["project"], ["events"], ["status"], ["append", "a-1", "entity.deleted", "{}"]]
)
def test_a_database_without_tables_says_how_to_make_them(
    tmp_path: Path, empty_database: str, command: list[str]
) -> None:
    settings = {
        "OUTBOX_MODE": "servers",
        "OUTBOX_DATABASE__DSN": empty_database,
        "OUTBOX_KAFKA__BOOTSTRAP": "127.0.0.1:1",
    }
    refused(outbox(*command, settings=settings, cwd=tmp_path), "outbox migrate")


@pytest.mark.parametrize("dsn", [NOWHERE, None])
def test_up_on_a_database_of_ones_own_ends_if_it_cannot_be_used(
    tmp_path: Path, empty_database: str, dsn: str | None
) -> None:
    settings = {"OUTBOX_DATABASE__DSN": dsn or empty_database}
    refused(outbox("up", settings=settings, cwd=tmp_path), "127.0.0.1:1" if dsn else "outbox migrate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a-1", "no.such", "{}"], ["no.such"]),
        (["a-1", "entity.deleted", "{"], ["JSON"]),
        (["a-1", "entity.deleted", "[]"], ["object"]),
        (["a-1", "entity.deleted", '{"reason": 7}'], ["reason"]),
        (["a-1", "entity.deleted", '{"reason": "\\u0000"}'], ["reason", "NUL"]),
        (["a-1", "entity.linked", '{"kind": "x"}'], ["target"]),
        (["", "entity.deleted", "{}"], ["stream"]),
        (["a-1", "entity.deleted", "{}", "--expected", "7"], ["version 0", "expected 7"]),
        (["a-1", "entity.deleted", "{}", "--expected", "often"], ["often"]),
        (["a-1", "entity.deleted", "{}", "--expected", "\u00b2"], ["version"]),
        (["a-1", "entity.deleted", "{}", "--expected=--5"], ["--5"]),
        (["a-1", "entity.patched", '{"properties": {"n": 123456789012345678901}}'], ["properties.n", "range"]),
        (["a-1", "entity.patched", '{"properties": {"n": NaN}}'], ["NaN"]),
        (["a-1", "entity.patched", '{"properties": {"n": 1e999}}'], ["properties.n"]),
        (["a-1", "entity.patched", '{"properties": {"n": "\\ud800"}}'], ["properties.n"]),
        (["a-1", "entity.patched", '{"properties": ' + "[" * 100_000], ["JSON"]),
        (["a-1", "entity.deleted", "{}", "--id", "x"], ["--id"]),
    ],
)
def test_a_malformed_event_names_its_field(
    tmp_path: Path, database: str, arguments: list[str], said: list[str]
) -> None:
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database}
    refused(outbox("append", *arguments, settings=settings, cwd=tmp_path), *said)


def test_an_unknown_projector_and_store_are_named(tmp_path: Path, database: str) -> None:
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database, "OUTBOX_KAFKA__BOOTSTRAP": "127.0.0.1:1"}
    refused(outbox("verify", "nothing", settings=settings, cwd=tmp_path), "nothing", "documents")
    wrong = settings | {"OUTBOX_PROJECTORS": '{"x": {"projection": "nowhere:Thing", "store": "chroma"}}'}
    refused(outbox("project", "x", settings=wrong, cwd=tmp_path), "nowhere:Thing")
    wrong = settings | {"OUTBOX_PROJECTORS": '{"x": {"projection": "os:sep", "store": "chroma"}}'}
    refused(outbox("project", "x", settings=wrong, cwd=tmp_path), "os:sep", "no projection", "fold")


def test_a_path_that_is_not_there_is_named_and_nothing_is_written(tmp_path: Path, database: str) -> None:
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database}
    refused(outbox("ingest", "missing", settings=settings, cwd=tmp_path), "missing")


def test_a_file_that_does_not_parse_is_reported_and_the_others_go_on(tmp_path: Path, database: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.py").write_text("def f(): pass\n")
    (source / "bad.py").write_text("def f(:\n")
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database}
    done = outbox("ingest", str(source), settings=settings, cwd=tmp_path)
    assert done.returncode == 0
    assert "bad.py" in done.stderr
    assert "1 new" in done.stdout


@pytest.mark.parametrize(
    ("call", "said", "see"),
    [
        (["nothing"], "no such command 'nothing'", "outbox"),
        (["status", "--jsn"], "no such option: --jsn", "outbox status"),
        (["--confg", "x", "status"], "no such option: --confg", "outbox"),
        (["append", "--json"], "missing argument 'stream'", "outbox append"),
        (["search", "x", "y", "--json"], "(y)", "outbox search"),
        (["search", "x", "--limit", "0"], "'--limit'", "outbox search"),
        (["search", "x", "--limit"], "option '--limit' requires an argument", "outbox search"),
        (["parked", "discard", "t", "k", "--seq"], "option '--seq' requires an argument", "outbox parked discard"),
        (["dead-letters", "nothing"], "no such command 'nothing'", "outbox dead-letters"),
        (["events", "--stream", "a-1", "--category", "b"], "give either --stream or --category", "outbox events"),
        (["ingest", "--\x1b[2J"], "\\x1b[2J", "outbox ingest"),
    ],
)
def test_a_wrong_call_is_one_line_that_says_where_to_read_on(
    tmp_path: Path, call: list[str], said: str, see: str
) -> None:
    """It was three lines or more, where every other error is one."""
    done = outbox(*call, settings={}, cwd=tmp_path)
    refused(done, said)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("outbox: ")
    assert done.stderr.endswith(f"; see `{see} --help`\n")


@pytest.mark.parametrize("call", [[], ["parked"]])
def test_a_command_that_does_nothing_by_itself_shows_its_help(tmp_path: Path, call: list[str]) -> None:
    done = outbox(*call, settings={}, cwd=tmp_path)
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_nothing_to_ask_yet_says_how_to_begin(tmp_path: Path) -> None:
    refused(outbox("search", "x", settings={}, cwd=tmp_path), "outbox up")
