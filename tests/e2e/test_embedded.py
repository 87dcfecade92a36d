"""The embedded mode as people use it: the demo, and `outbox up` in one terminal with commands in another."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from projectors.holding import held
from tests.e2e.corpus import expected_keys
from tests.e2e.outbox_command import answer, outbox, process

CLEAN = {"missing": 0, "stale": 0, "extra": 0, "different": 0}
EMBEDDED = {"chroma", "ladybug", "tantivy"}
pytestmark = pytest.mark.timeout(600)


def until(condition: Callable[[], object], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


def write_sources(folder: Path, count: int = 30) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"mod{i}.py").write_text(
            f'"""Module {i} about walrus number {i}."""\nimport mod{(i + 1) % count}\n\n\ndef walrus{i}():\n'
            f'    """Feed the walrus."""\n    return mod{(i + 1) % count}.walrus{(i + 1) % count}()\n',
            "utf-8",
        )
    (folder / "guide.md").write_text("# Guide\n\nHow to feed a walrus.\n\n## Fish\n\nHerring.\n", "utf-8")
    return folder


@contextmanager
def up(folder: Path) -> Iterator[Popen[bytes]]:
    with process("up", settings={}, cwd=folder) as running:
        until(lambda: (folder / ".outbox" / "up.sock").exists() or running.poll() is not None)
        assert running.poll() is None, next(folder.glob("up*.log")).read_text("utf-8")
        yield running


def all_caught_up(folder: Path) -> bool:
    status = answer("status", settings={}, cwd=folder)
    return status["relay"]["waiting"] == 0 and all(p["generation"] and p["lag"] == 0 for p in status["projectors"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("demo")
    done = outbox("demo", "--json", settings={}, cwd=folder, timeout_s=500)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_the_demo_ends_with_every_store_equal_to_the_log(demo: tuple[Path, dict[str, object]]) -> None:
    folder, result = demo
    corpus = folder / ".outbox" / "demo" / "stdlib"
    assert result["verify"] == dict.fromkeys(EMBEDDED, CLEAN)
    assert result["records"] == dict.fromkeys(EMBEDDED, len(expected_keys(corpus)))
    assert result["failures"] == []
    assert result["files"] == sum(1 for _ in corpus.rglob("*.py"))


def test_a_second_demo_appends_nothing(demo: tuple[Path, dict[str, object]]) -> None:
    folder, first = demo
    done = outbox("demo", "--json", settings={}, cwd=folder, timeout_s=300)
    assert done.returncode == 0, done.stderr
    second = json.loads(done.stdout.splitlines()[-1])
    assert second["events"] == 0
    assert second["records"] == first["records"]


def test_commands_in_another_terminal_are_answered_while_it_is_up(tmp_path: Path) -> None:
    source = write_sources(tmp_path / "source")
    with up(tmp_path):
        report = answer("ingest", str(source), settings={}, cwd=tmp_path)
        assert report["events"] == 31
        until(lambda: all_caught_up(tmp_path))
        found = answer("search", "walrus7", "--how", "find", settings={}, cwd=tmp_path)
        assert [h["key"] for h in found] == ["python-mod7#walrus7"]
        around = answer("search", "python-mod7", "--how", "neighbours", settings={}, cwd=tmp_path)
        assert {(n["edge"], n["direction"], n["key"]) for n in around} == {
            ("contains", "out", "python-mod7#walrus7"),
            ("imports", "out", "python-mod8"),
            ("imports", "in", "python-mod6"),
        }
        hybrid = answer("search", "herring", settings={}, cwd=tmp_path)
        assert hybrid[0]["key"].startswith("text-source/guide.md#")
        reports = answer("verify", settings={}, cwd=tmp_path)
        assert {r["store"]: {k: r[k] for k in CLEAN} for r in reports} == dict.fromkeys(EMBEDDED, CLEAN)
        done = answer("append", "entity-1", "entity.patched", '{"name": "capybara"}', settings={}, cwd=tmp_path)
        mine = answer("search", "capybara", "--token", str(done["token"]), settings={}, cwd=tmp_path)
        assert mine[0]["key"] == "entity-1"
        built = answer("rebuild", "documents", settings={}, cwd=tmp_path)
        assert built["generation"] == "g2"
        back = answer("rebuild", "documents", "--rollback", settings={}, cwd=tmp_path)
        assert back["generation"] == "g1"
        wrong = outbox("rebuild", "nothing", settings={}, cwd=tmp_path)
        assert wrong.returncode != 0
        assert "nothing" in wrong.stderr
        assert "Traceback" not in wrong.stderr
    assert not (tmp_path / ".outbox" / "up.sock").exists()
    shown = outbox("verify", settings={}, cwd=tmp_path)  # and without it, on the same folder
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    source = write_sources(tmp_path / "source", 300)
    with up(tmp_path) as running:
        answer("ingest", str(source), settings={}, cwd=tmp_path)
        running.send_signal(signal.SIGKILL)
        running.wait()
    with up(tmp_path) as running:
        (source / "mod1.py").write_text("def changed():\n    pass\n", "utf-8")
        (source / "mod2.py").unlink()
        answer("ingest", str(source), settings={}, cwd=tmp_path)
        running.send_signal(signal.SIGKILL)
        running.wait()
    with up(tmp_path):
        until(lambda: all_caught_up(tmp_path))
        reports = answer("verify", settings={}, cwd=tmp_path)
    assert {r["store"]: {k: r[k] for k in CLEAN} for r in reports} == dict.fromkeys(EMBEDDED, CLEAN)
    assert {r["records"] for r in reports} == {299 * 2 + 3}
    assert not (tmp_path / ".outbox" / "postgres" / "postmaster.pid").exists(), "the last to leave stops PostgreSQL"


def test_ctrl_c_in_an_ingest_is_clean_and_the_next_one_goes_on(tmp_path: Path) -> None:
    source = write_sources(tmp_path / "source", 2_000)
    outbox("migrate", settings={}, cwd=tmp_path)
    with process("ingest", str(source), settings={}, cwd=tmp_path) as running:
        until(lambda: len(outbox("events", "--limit", "1", settings={}, cwd=tmp_path).stdout) > 0)
        running.send_signal(signal.SIGINT)
        code = running.wait(60)
    said = next(tmp_path.glob("ingest*.log")).read_text("utf-8")
    assert "Traceback" not in said
    assert code in (0, 130), said
    rest = answer("ingest", str(source), settings={}, cwd=tmp_path)
    assert rest["unchanged"] + rest["new"] == 2_001
    assert answer("ingest", str(source), settings={}, cwd=tmp_path)["events"] == 0


def test_two_ups_on_one_folder_are_refused(tmp_path: Path) -> None:
    with up(tmp_path):
        second = outbox("up", settings={}, cwd=tmp_path)
    assert second.returncode == 1
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_ends_cleanly_when_it_is_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path) as running:
        running.send_signal(number)
        code = running.wait(60)
    said = next(tmp_path.glob("up*.log")).read_text("utf-8")
    assert code == 0, said
    assert "Traceback" not in said
    assert not (tmp_path / ".outbox" / "up.sock").exists()
    assert not (tmp_path / ".outbox" / "postgres" / "postmaster.pid").exists()


def test_up_ends_cleanly_even_while_it_starts(tmp_path: Path) -> None:
    with process("up", settings={}, cwd=tmp_path) as running:
        until(lambda: (tmp_path / ".outbox" / "postgres").exists() or running.poll() is not None)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert "Traceback" not in next(tmp_path.glob("up*.log")).read_text("utf-8")


def test_a_store_folder_that_another_process_holds_ends_up_in_one_line(tmp_path: Path) -> None:
    with held(tmp_path / ".outbox" / "tantivy"):
        done = outbox("up", settings={}, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [said for said in done.stderr.splitlines() if said.strip()]
    assert f"tantivy is open in process {os.getpid()}" in line


def test_the_status_says_whether_each_store_answers(tmp_path: Path) -> None:
    with up(tmp_path):
        until(lambda: all_caught_up(tmp_path))
        status = answer("status", settings={}, cwd=tmp_path)
    assert [p["answers"] for p in status["projectors"]] == [True, True, True]


def test_events_for_machines_are_one_json_value_a_line(tmp_path: Path) -> None:
    for n in range(3):
        done = answer("append", f"entity-{n}", "entity.patched", '{"name": "line\\nbreak"}', settings={}, cwd=tmp_path)
        assert done["version"] == 1
    shown = outbox("events", "--json", "--after", "1", settings={}, cwd=tmp_path).stdout.splitlines()
    assert [json.loads(line)["stream"] for line in shown] == ["entity-1", "entity-2"]
    assert json.loads(shown[0])["data"]["name"] == "line\nbreak"
