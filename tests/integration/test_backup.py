"""Backups of a real log: what is written, what the next run adds, and that what was restored is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastavro import reader, schemaless_reader

from outbox.backup import backup, container, read_manifest, restore, verify
from outbox.backup.manifest import write_manifest
from outbox.codec import Registry
from outbox.database import Connection, connected
from outbox.errors import BackupError, DatabaseError, LogWentBack
from outbox.log.append import append
from outbox.log.identity import check_identity
from tests.e2e.outbox_command import outbox
from tests.integration.appending import event

REGISTRY = Registry.load()
EXACT = "SELECT position, stream, version, type, id, data, meta::text, at FROM outbox.event ORDER BY position"


@pytest.fixture
def log(database: str) -> Iterator[Connection]:
    with connected(database) as connection:
        yield connection


def fill(connection: Connection, events: int, first: int = 0) -> None:
    for n in range(first, first + events):
        append(connection, f"thing-{n % 7}", event(f"n{n}", meta={"n": n, "ünï": [None, 1.5]}), registry=REGISTRY)


def rows(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(EXACT).fetchall()


def restored(empty: str, folder: Path) -> list[tuple[Any, ...]]:
    with connected(empty) as connection:
        restore(connection, folder)
        return rows(connection)


def test_what_is_restored_is_what_was_backed_up_to_the_last_microsecond(
    log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 200)
    done = backup(log, tmp_path / "b", REGISTRY)
    assert (done.events, done.total_events) == (200, 200)
    assert restored(empty_database, tmp_path / "b") == rows(log)


def test_a_second_run_writes_only_what_is_new(log: Connection, empty_database: str, tmp_path: Path) -> None:
    fill(log, 50)
    backup(log, tmp_path, REGISTRY)
    first = {p.name: p.read_bytes() for p in tmp_path.glob("*.avro")}
    assert backup(log, tmp_path, REGISTRY).files == 0, "nothing is new"
    fill(log, 30, first=50)
    done = backup(log, tmp_path, REGISTRY)
    assert (done.events, done.total_events) == (30, 80)
    assert {name: (tmp_path / name).read_bytes() for name in first} == first, "old files stay as they are"
    assert restored(empty_database, tmp_path) == rows(log)


def test_what_commits_late_at_a_lower_position_comes_with_the_next_increment(
    database: str, log: Connection, empty_database: str, tmp_path: Path
) -> None:
    with connected(database) as slow:
        slow.execute("BEGIN")
        early = append(slow, "slow-1", event(), registry=REGISTRY).positions[0]
        fill(log, 10)
        backup(log, tmp_path, REGISTRY)
        assert early < read_manifest(tmp_path).last_position
        fill(log, 5, first=10)
        backup(log, tmp_path, REGISTRY)
        slow.execute("COMMIT")
    assert backup(log, tmp_path, REGISTRY).events == 1
    assert restored(empty_database, tmp_path) == rows(log)


def test_writers_beside_backups_lose_nothing_and_double_nothing(
    database: str, log: Connection, empty_database: str, tmp_path: Path
) -> None:
    code = (
        "import sys; from outbox.database import connected; from tests.integration.test_backup import fill\n"
        "with connected(sys.argv[1]) as c:\n"
        "    for n in range(0, 400, 4):\n"
        "        with c.transaction(): fill(c, 4, first=n)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, database]) for _ in range(2)]
    while any(w.poll() is None for w in writers):
        backup(log, tmp_path, REGISTRY)
    assert [w.returncode for w in writers] == [0, 0]
    backup(log, tmp_path, REGISTRY)
    assert read_manifest(tmp_path).events == 800
    assert restored(empty_database, tmp_path) == rows(log)


def test_files_are_of_bounded_size_and_any_avro_library_reads_them(
    log: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "FILE_BYTES", 20_000)
    monkeypatch.setattr(container, "BLOCK_BYTES", 2_000)
    for n in range(300):
        append(log, f"thing-{n}", event(os.urandom(200).hex()), registry=REGISTRY)
    backup(log, tmp_path, REGISTRY)
    manifest = verify(tmp_path)
    assert len(manifest.files) > 3
    assert max(f.bytes for f in manifest.files) < 25_000
    assert all(a.last < b.first for a, b in zip(manifest.files, manifest.files[1:], strict=False))
    with (tmp_path / manifest.files[0].name).open("rb") as file:
        found = next(reader(file))
    fingerprint = found["data"][2:10][::-1].hex()
    schema = manifest.schemas[f"{found['type']}/{fingerprint}"]
    import io

    assert schemaless_reader(io.BytesIO(found["data"][10:]), dict(schema), None)["kind"] == "k"


def test_memory_stays_flat(log: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = "x" * 100_000
    for n in range(100):
        append(log, f"thing-{n}", [event(f"{n}{big}") for _ in range(4)], registry=REGISTRY)
    backup(log, tmp_path / "warm", REGISTRY)
    tracemalloc.start()
    backup(log, tmp_path / "b", REGISTRY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000, "of 40 MB of events"


def test_a_run_that_is_killed_leaves_the_backup_before(
    database: str, log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 20)
    backup(log, tmp_path, REGISTRY)
    fill(log, 20, first=20)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from outbox.backup import backup, container, writing\n"
        "container.FILE_BYTES = 1\n"
        "writing.put_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from outbox.database import connected; from outbox.codec import Registry\n"
        "with connected(sys.argv[1]) as c: backup(c, Path(sys.argv[2]), Registry.load())\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, database, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.avro"))) == 21, "it had written its files"
    assert verify(tmp_path).events == 20
    fill(log, 1, first=40)
    assert backup(log, tmp_path, REGISTRY).events == 21
    assert {p.name for p in tmp_path.glob("*.avro")} == {f.name for f in read_manifest(tmp_path).files}
    assert restored(empty_database, tmp_path) == rows(log)


def changed_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a byte changed": (lambda b: changed_byte(next(b.glob("*.avro"))), "was changed"),
    "a file missing": (lambda b: next(b.glob("*.avro")).unlink(), "is missing"),
    "a file cut short": (lambda b: os.truncate(next(b.glob("*.avro")), 100), "was changed"),
    "the manifest changed": (
        lambda b: (b / "manifest.json").write_text(
            (b / "manifest.json").read_text().replace('"events": 20', '"events": 2')
        ),
        "was changed",
    ),
    "the manifest missing": (lambda b: (b / "manifest.json").unlink(), "holds no backup"),
    "the manifest no JSON": (lambda b: (b / "manifest.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_is_one_line_and_nothing_is_written(
    damage: str, log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 20)
    backup(log, tmp_path / "b", REGISTRY)
    act, said = DAMAGES[damage]
    act(tmp_path / "b")
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": empty_database}
    for command in (["backup", str(tmp_path / "b"), "--verify"], ["restore", str(tmp_path / "b")]):
        done = outbox(*command, settings=settings, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with connected(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('outbox')").fetchone() == (None,)


def test_the_commands_say_what_they_did_and_what_to_do_next(
    log: Connection, database: str, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 20)
    here = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database}
    there = here | {"OUTBOX_DATABASE__DSN": empty_database}
    folder = str(tmp_path / "b")
    assert json.loads(outbox("backup", folder, "--json", settings=here, cwd=tmp_path).stdout)["events"] == 20
    assert "0 new events" in outbox("backup", folder, settings=here, cwd=tmp_path).stdout
    assert "20 events" in outbox("backup", folder, "--verify", settings=here, cwd=tmp_path).stdout
    done = outbox("restore", folder, settings=there, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "outbox reconcile" in done.stdout
    again = outbox("restore", folder, settings=there, cwd=tmp_path)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert "holds events already" in again.stderr


def test_appends_go_on_behind_what_was_restored(log: Connection, empty_database: str, tmp_path: Path) -> None:
    fill(log, 20)
    backup(log, tmp_path, REGISTRY)
    with connected(empty_database) as connection:
        last = restore(connection, tmp_path).last_position
        drawn = connection.execute("SELECT nextval(pg_get_serial_sequence('outbox.event', 'position'))").fetchone()
        assert drawn == (last + 1,)
        done = append(connection, "thing-0", event(), expected=3, registry=REGISTRY)
        assert (done.version, done.positions) == (4, (last + 2,))


def test_the_encoding_of_the_connection_that_restores_does_not_matter(
    log: Connection, empty_database: str, tmp_path: Path
) -> None:
    append(log, "thing-Zoë", event("Zoë", meta={"who": "Zoë"}), registry=REGISTRY)
    backup(log, tmp_path, REGISTRY)
    with connected(empty_database, client_encoding="LATIN1") as connection:
        restore(connection, tmp_path)
        assert rows(connection) == rows(log)


def test_an_empty_log_is_backed_up_and_restored(log: Connection, empty_database: str, tmp_path: Path) -> None:
    assert backup(log, tmp_path, REGISTRY).total_events == 0
    with connected(empty_database) as connection:
        assert restore(connection, tmp_path).events == 0
        assert append(connection, "thing-1", event(), registry=REGISTRY).positions == (1,)


def test_what_no_relay_had_published_waits_in_the_outbox_again(
    log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 20)
    backup(log, tmp_path, REGISTRY)
    with connected(empty_database) as connection:
        assert restore(connection, tmp_path).unpublished == 20


def test_what_a_relay_has_parked_waits_in_the_outbox_again(
    log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 20)
    log.execute("INSERT INTO outbox.relay_cursor SELECT 'relay', 1, s, s, 0 FROM pg_current_snapshot() s")
    (parked,) = log.execute("SELECT position FROM outbox.event ORDER BY position OFFSET 15 LIMIT 1").fetchall()
    columns = "relay, topic, key, seq, reason, position"
    log.execute(f"INSERT INTO outbox.parked ({columns}) VALUES ('relay', 't', 'k', 1, 'too large', %s)", parked)
    backup(log, tmp_path, REGISTRY)
    with connected(empty_database) as connection:
        assert restore(connection, tmp_path).unpublished == 5


def test_a_restored_log_is_halted_until_it_is_reconciled(log: Connection, empty_database: str, tmp_path: Path) -> None:
    fill(log, 5)
    backup(log, tmp_path, REGISTRY)
    with connected(empty_database) as connection:
        restore(connection, tmp_path)
        with pytest.raises(LogWentBack, match="outbox reconcile"):
            check_identity(connection)


def test_the_backup_of_another_log_is_not_added_to(log: Connection, empty_database: str, tmp_path: Path) -> None:
    fill(log, 5)
    backup(log, tmp_path, REGISTRY)
    log.execute("UPDATE outbox.log_identity SET log_id = gen_random_uuid()")
    with pytest.raises(BackupError, match="another log"):
        backup(log, tmp_path, REGISTRY)


def test_a_log_that_has_lost_what_is_backed_up_is_not_added(log: Connection, tmp_path: Path) -> None:
    fill(log, 5)
    backup(log, tmp_path, REGISTRY)
    with log.transaction():
        log.execute("SET LOCAL outbox.erasure = 'on'")
        log.execute(
            "UPDATE outbox.event SET id = %s WHERE position = (SELECT max(position) FROM outbox.event)", [uuid.uuid4()]
        )
    with pytest.raises(BackupError, match="the log does not"):
        backup(log, tmp_path, REGISTRY)


def test_the_newest_event_that_is_backed_up_may_be_erased_by_law(log: Connection, tmp_path: Path) -> None:
    fill(log, 5)
    backup(log, tmp_path, REGISTRY)
    with log.transaction():
        log.execute("SET LOCAL outbox.erasure = 'on'")
        log.execute("DELETE FROM outbox.event WHERE position = (SELECT max(position) FROM outbox.event)")
    assert backup(log, tmp_path, REGISTRY).events == 0


def test_a_log_that_lost_transactions_but_no_event_gives_their_ids_to_events_that_are_backed_up(
    log: Connection, empty_database: str, tmp_path: Path
) -> None:
    fill(log, 5)
    backup(log, tmp_path, REGISTRY)
    manifest = read_manifest(tmp_path)
    ahead = int(str(manifest.snapshot).split(":")[1]) + 1_000  # transactions that the database has lost since
    lost = replace(manifest.increments[0], snapshot=f"{ahead}:{ahead}:")
    write_manifest(tmp_path, replace(manifest, increments=(lost,)))
    fill(log, 5, first=5)
    assert backup(log, tmp_path, REGISTRY).events == 5
    assert backup(log, tmp_path, REGISTRY).events == 0
    assert restored(empty_database, tmp_path) == rows(log)


def test_two_backups_into_one_folder_exclude_each_other(log: Connection, tmp_path: Path) -> None:
    from outbox.backup.writing import _locked

    with _locked(tmp_path), pytest.raises(BackupError, match="going on"):
        backup(log, tmp_path, REGISTRY)


def test_a_database_without_tables_is_said_to_be_so(empty_database: str, tmp_path: Path) -> None:
    with connected(empty_database) as connection, pytest.raises(DatabaseError, match="outbox migrate"):
        backup(connection, tmp_path, REGISTRY)
