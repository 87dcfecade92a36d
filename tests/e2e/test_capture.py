"""``outbox capture`` as an operator has it: pgbench's tables, kills, and each store row compared with PostgreSQL's."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks.capture import TABLES, Site, killed, prepare, settings_for
from outbox.database import connected
from tests.e2e.outbox_command import answer, outbox, process
from tests.relaying import until, without_slots


@pytest.fixture
def site(database: str, tmp_path: Path):
    with without_slots(database):
        yield Site(database, settings_for(database), tmp_path)


@pytest.mark.timeout(600)
def test_pgbench_with_three_kills_in_between_ends_with_stores_equal_row_by_row(site: Site) -> None:
    prepare(site.dsn, 1)
    with connected(site.dsn) as connection:  # pgbench goes on to ask for those that are gone: a snapshot of fewer rows
        connection.execute("DELETE FROM pgbench_accounts WHERE aid > 5000")
    done = killed(site, seconds=12, kills=3, seed=7)
    assert done.differences == dict.fromkeys(TABLES, 0)
    assert done.transactions > 0
    (report,) = answer("verify", settings=site.settings, cwd=site.cwd)
    assert report["differences"] == []
    assert report["records"] > 5_000


def test_tables_are_captured_listed_looked_at_again_and_dropped(site: Site) -> None:
    settings, cwd = site.settings, site.cwd
    with connected(site.dsn) as connection:
        connection.execute("CREATE TABLE pets (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO pets VALUES (1, 'Ada'), (2, 'Bob')")
    assert "nothing is captured" in outbox("capture", "--list", settings=settings, cwd=cwd).stdout
    done = answer("capture", "pets", "--drain", settings=settings, cwd=cwd)
    assert (done["tables"], done["events"], done["snapshot_rows"]) == (["pets"], 3, 2)
    (listed,) = answer("capture", "--list", settings=settings, cwd=cwd)
    assert (listed["category"], listed["key"], listed["state"], listed["leader"]) == ("pets", ["id"], "streaming", None)
    assert "public.pets" in outbox("capture", "--list", settings=settings, cwd=cwd).stdout
    shown = outbox("events", "--stream", "pets-2", "--json", settings=settings, cwd=cwd).stdout
    assert json.loads(shown)["data"]["columns"] == {"id": 2, "name": "Bob"}
    assert answer("capture", "--again", "pets", settings=settings, cwd=cwd) == {
        "capture": "capture",
        "category": "pets",
    }
    done = answer("capture", "--drain", settings=settings, cwd=cwd)
    assert (done["events"], done["snapshot_rows"]) == (0, 2)
    assert "no longer" in outbox("capture", "--drop", "pets", settings=settings, cwd=cwd).stdout
    assert answer("capture", "--list", settings=settings, cwd=cwd) == []


def test_how_much_of_the_write_ahead_log_the_slot_keeps_is_served_as_a_metric(site: Site) -> None:
    with connected(site.dsn) as connection:
        connection.execute("CREATE TABLE pets (id int PRIMARY KEY, name text)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def served() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                return b"\noutbox_capture_slot_wal_bytes " in page.read()
        except urllib.error.URLError:
            return False

    with process("capture", "pets", "--metrics-port", str(port), settings=site.settings, cwd=site.cwd):
        until(served, 30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "there is no table 'nothing'"),
        ((), "has no tables: outbox capture TABLE"),
        (("--drop", "pets"), "has no 'pets'; it captures nothing"),
        (("pets", "--list"), "either tables, --list"),
        (("--name", "Not a name"), "capture name"),
        (("keyless",), "it has no primary key"),
        (("--source", "postgresql://127.0.0.1:1/x", "pets"), "cannot be reached"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(site: Site, arguments: tuple[str, ...], said: str) -> None:
    with connected(site.dsn) as connection:
        connection.execute("CREATE TABLE keyless (n int)")
    done = outbox("capture", *arguments, settings=site.settings, cwd=site.cwd)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
