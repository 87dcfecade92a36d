"""The command's frame: what is registered, how errors become exit codes, and what is not imported for it."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import structlog
import typer
from typer.testing import CliRunner

from outbox.cli import commands
from outbox.cli import main as cli
from outbox.cli.commands import serve_metrics, until_stopped
from outbox.cli.context import print_json
from outbox.cli.progress import progress
from outbox.errors import InvalidEvent, OutboxError, SettingsError, StoreUnavailable
from outbox.event import Event
from outbox.logs import configure_logging, quiet_unless_configured

COMMANDS = (
    "append backup capture dead-letters demo events ingest migrate parked project rebuild reconcile relay restore"
    " schemas search status"
    " up verify"
)
DRIVERS = ["chromadb", "neo4j", "elasticsearch", "confluent_kafka", "kafka", "ladybug", "tantivy"]


@pytest.fixture(autouse=True)
def unconfigured() -> Any:
    yield
    structlog.reset_defaults()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.build(), list(arguments))


def test_the_help_lists_every_command_of_both_sides() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for name in COMMANDS.split():
        assert f" {name} " in shown.output


def test_building_twice_registers_each_command_once() -> None:
    assert cli.build() is cli.build()
    built = cli.build()
    names = [c.name or c.callback.__name__ for c in built.registered_commands if c.callback]
    names += [str(g.typer_instance.info.name) for g in built.registered_groups if g.typer_instance]
    assert sorted(names) == sorted(COMMANDS.split())


def test_schemas_are_listed_for_people_and_for_machines() -> None:
    rows = json.loads(run("schemas", "--json").output)
    assert {"entity.upserted", "entity.deleted"} <= {r["type"] for r in rows}
    assert set(rows[0]) == {"type", "version", "id"}
    assert "entity.upserted" in run("schemas").output


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "x", "--limit", "0"],
        ["search", "x", "--depth", "7"],
        ["events", "--after", "-1"],
        ["events", "--limit", "9" * 20],
        ["events", "--stream", "a-1", "--category", "b"],
        *(
            [command, "--metrics-port", port]
            for command in ("relay", "project", "capture", "up")
            for port in ("-1", "65536")
        ),
        ["nothing"],
    ],
)
def test_a_wrong_call_exits_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["capture", "--drop", ""],
        ["capture", "--again", ""],
        ["capture", "--source", "", "orders"],
        ["append", "a-1", "entity.deleted", "{}", "--id", ""],
        ["events", "--stream", ""],
        ["events", "--category", ""],
        ["backup", ""],
        ["restore", ""],
        ["demo", ""],
        ["dead-letters", "retry", ""],
        ["dead-letters", "list", ""],
        ["--config", "", "schemas"],
        ["--data-dir", "", "schemas"],
    ],
)
def test_an_empty_value_is_a_wrong_call_and_not_one_left_out(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in a shell variable that is not set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTBOX_MODE", "servers")  # nothing is started, whatever is taken for right
    done = run(*arguments)
    assert done.exit_code == 2, done.exception
    assert "it is empty" in done.output
    assert not list(tmp_path.iterdir())


def test_a_direction_that_is_none_is_a_wrong_call() -> None:
    assert isinstance(run("search", "x", "--direction", "up").exception, SettingsError)


def test_up_is_for_the_embedded_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_MODE", "servers")
    assert isinstance(run("up").exception, SettingsError)


@pytest.mark.parametrize(("name", "value"), [("OUTBOX_MODE", "servers"), ("OUTBOX_DATABASE__DSN", "postgresql://x/y")])
def test_the_demo_touches_no_log_or_store_of_a_server(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_all_the_same(*_: object, **__: object) -> bool:
        raise AssertionError("it would ingest into their log and wipe their store")

    monkeypatch.setattr("projectors.demo.run", run_all_the_same)
    monkeypatch.setenv(name, value)
    assert isinstance(run("demo").exception, SettingsError)


def test_the_demo_writes_nothing_into_a_folder_that_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener(str(tmp_path / "up.sock"), "AF_UNIX"):
        monkeypatch.setattr("projectors.demo.run", lambda *_, **__: False)
        refused = run("--data-dir", str(tmp_path), "demo").exception
    assert isinstance(refused, OutboxError)
    assert "another --data-dir" in str(refused)


def test_commands_that_cannot_be_loaded_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("mine", "not_installed.cli:register", "outbox.commands")
    monkeypatch.setattr(cli, "entry_points", lambda group: [broken])
    monkeypatch.setattr(cli, "app", typer.Typer())
    with pytest.raises(SettingsError, match=r"mine.*not_installed"):
        cli.build()


# ------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SettingsError("no such key"), 2, "no such key"),
        (InvalidEvent("not JSON"), 2, "not JSON"),
        (StoreUnavailable("down\nfor now"), 1, "down for now"),
        (psycopg.OperationalError("disk\nfull"), 1, "disk full"),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "/root/x"),
        (KeyboardInterrupt(), 130, "run it again"),
        (typer.Abort(), 130, "run it again"),
        (typer.BadParameter("three"), 2, "three"),
        (typer.Exit(1), 1, ""),
        (None, 0, ""),
    ],
)
def test_each_error_is_one_line_and_its_exit_code(
    raised: BaseException | None, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert exit_code(raised, monkeypatch) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    if isinstance(raised, SettingsError | InvalidEvent | StoreUnavailable | psycopg.Error | OSError):
        assert error == f"outbox: {said if said != '/root/x' else str(raised)}\n"


def test_an_error_of_our_own_code_is_seen_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(ZeroDivisionError(), monkeypatch)


def test_text_that_the_terminal_has_no_character_for_is_shown_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    app = typer.Typer()
    app.command()(lambda: typer.echo("日本 ok"))
    monkeypatch.setattr(cli, "build", lambda: app)
    monkeypatch.setattr(sys, "argv", ["outbox"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert written.getvalue() == b"\\u65e5\\u672c ok\n"


def test_a_closed_standard_output_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code(None, monkeypatch) == 0


def test_an_argument_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    app = typer.Typer()
    app.command()(lambda word: word.encode())
    monkeypatch.setattr(cli, "build", lambda: app)
    monkeypatch.setattr(sys, "argv", ["outbox", os.fsdecode(b"cust-\xff")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "outbox: the argument 'cust-\\udcff' is not UTF-8\n"


def exit_code(raised: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(cli, "build", lambda: app)
    monkeypatch.setattr(sys, "argv", ["outbox"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_reader_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("outbox")), "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == b""


# --------------------------------------------------------------------- what is shared


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_loops_to_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with until_stopped() as stop:
        os.kill(os.getpid(), number)
        assert stop.wait(10)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), until_stopped() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)


def test_json_is_one_value_a_line(capsys: Any) -> None:
    print_json({"at": Path("x"), 1: ["é"]})
    assert json.loads(capsys.readouterr().out) == {"at": "x", "1": ["é"]}


def test_bytes_are_printed_as_postgresql_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"raw": b"\xde\xad", "none": b"", "list": [b"\x00"]})
    assert json.loads(capsys.readouterr().out) == {"raw": "\\xdead", "none": "\\x", "list": ["\\x00"]}


def test_progress_is_silent_for_machines(capsys: Any) -> None:
    for quiet in (True, False):
        with progress("files", quiet=quiet) as tell:
            tell(1, 0, "x")
            tell(1, 2, "y")
    assert capsys.readouterr().err.strip() == ""


def test_metrics_are_served_only_if_asked_for() -> None:
    import socket
    import urllib.request

    serve_metrics(None)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve_metrics(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"python_info" in answer.read()


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: a"])
def test_who_connects_for_metrics_and_falls_silent_is_let_go(said: bytes, monkeypatch: Any, capfd: Any) -> None:
    import socket

    monkeypatch.setattr(commands, "SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve_metrics(port)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        silent.sendall(said)
        assert silent.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_a_library_logs_warnings_to_standard_error_and_nothing_to_standard_output(capsys: Any) -> None:
    structlog.reset_defaults()
    quiet_unless_configured()
    structlog.get_logger().info("unseen")
    structlog.get_logger().warning("seen")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert json.loads(shown.err)["event"] == "seen"


def test_what_a_program_has_configured_stays(capsys: Any) -> None:
    lines = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(lines))
    quiet_unless_configured()
    structlog.get_logger().info("mine")
    assert "mine" in lines.getvalue()


def test_verbose_logs_what_happens(capsys: Any) -> None:
    configure_logging(logging.INFO)
    structlog.get_logger().info("leading", epoch=1)
    assert json.loads(capsys.readouterr().err)["epoch"] == 1


@pytest.mark.parametrize(
    "code",
    [
        "import outbox, projectors",
        "from outbox.cli.main import build; build()",
        "import projectors.operations, projectors.control, projectors.cli.show",
    ],
)
def test_no_store_or_broker_client_is_imported_to_begin(code: str, tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print([m for m in {DRIVERS} if m in sys.modules])"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "shown"), [(None, ""), ("", ""), ("a\nb", "a b"), (0, "0")])
def test_an_event_whose_name_is_null_is_shown_without_one(
    name: Any, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patch that sets no name was shown as one of something called None."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    commands._show(Event("a-1", 1, "entity.patched", {"name": name}, uuid4(), 7, at, {}), as_json=False)
    assert capsys.readouterr().out.rstrip("\n").endswith(f"a-1@1  entity.patched  {shown}")
