"""The command line leaves servers running for other processes, finds them again and ends them."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, expect=0):
    command = [sys.executable, "-m", "deploy.local", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def home(tmp_path):
    yield tmp_path / "home"
    if (tmp_path / "home").exists():
        run("down", "--home", tmp_path / "home")


def test_up_status_down(home):
    addresses = json.loads(run("up", "postgres", "--home", home, "--json", "--set", "postgres.work_mem=5MB").stdout)
    with psycopg.connect(addresses["OUTBOX_TEST_POSTGRES"]) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)

    again = json.loads(run("up", "postgres", "--home", home, "--json").stdout)
    assert again == addresses, "what runs already stays"

    table = run("status", "--home", home).stdout
    assert addresses["OUTBOX_TEST_POSTGRES"] in table
    (row,) = json.loads(run("status", "--home", home, "--json").stdout)
    assert row["running"] and row["resident_bytes"] > 0 and row["started_s"] > 0
    run("status", "kafka", "--home", home, expect=1)

    assert json.loads(run("down", "--home", home, "--json").stdout) == {"stopped": ["postgres"]}
    assert "stopped" in run("status", "--home", home, expect=1).stdout
    assert json.loads(run("down", "--home", home, "--json").stdout) == {"stopped": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "redis"], "no service is called 'redis'"),
        (["up", "postgres", "--set", "fsync=off"], "SERVICE.KEY=VALUE"),
        (["down", "--home", "/nonexistent/home"], "nothing was started there"),
    ],
)
def test_a_mistake_is_answered_by_one_line(arguments, words):
    done = run(*arguments, expect=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_with_someone_elses_state_is_not_touched(tmp_path):
    (tmp_path / "state.json").write_text('{"mine": true}')
    assert "choose another home" in run("up", "postgres", "--home", tmp_path, expect=2).stderr
    assert (tmp_path / "state.json").read_text() == '{"mine": true}'


def test_one_that_is_killed_while_a_server_starts_leaves_none_that_nobody_knows_of(home):
    slow = ["up", "postgres", "--home", str(home), "--set", "postgres.pre_auth_delay=50"]  # it answers nobody
    with subprocess.Popen([sys.executable, "-m", "deploy.local", *slow], cwd=ROOT) as starting:
        server = until(lambda: server_in(home / "postgres" / "data"))
        starting.kill()
    server.wait(30)

    assert json.loads(run("status", "--home", home, "--json").stdout) == []
    address = json.loads(run("up", "postgres", "--home", home, "--json").stdout)["OUTBOX_TEST_POSTGRES"]
    psycopg.connect(address).close()


def server_in(data):
    """The process that has the folder; what initdb runs there writes its number with a minus, which none has."""
    return psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))


def until(look, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with suppress(OSError, IndexError, ValueError, psutil.Error):
            return look()
    raise AssertionError("waited in vain")
