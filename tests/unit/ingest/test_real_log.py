"""The same on the real log, in PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from outbox.codec import default_registry
from outbox.database import connected
from outbox.event import NewEvent
from outbox.ingest import Options, ingest
from outbox.ingest.postgres import PostgresLog
from outbox.log.append import append
from outbox.log.read import read_all


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    for number in range(40):
        (folder / f"m{number:02}.py").write_text(f"def f{number}(): pass")
    return folder


def run(database: str, root, **options):
    with connected(database) as connection:
        return ingest([root], PostgresLog(connection, default_registry()), options=Options(**options))


def events(database: str) -> list[tuple[str, int, str]]:
    with connected(database) as connection:
        return sorted((e.stream, e.version, e.type) for e in read_all(connection, default_registry()))


def test_change_deletion_and_return_stand_in_the_log_in_order(database, root):
    assert run(database, root).new == 40
    (root / "m00.py").write_text("x = 1")
    (root / "m01.py").unlink()
    report = run(database, root)
    assert (report.changed, report.deleted, report.unchanged) == (1, 1, 38)
    (root / "m01.py").write_text("")
    assert (run(database, root).new, run(database, root).events) == (1, 0)
    written = [e for e in events(database) if e[0] in ("python-m00", "python-m01")]
    assert [(v, t.removeprefix("entity.")) for _, v, t in written] == [
        (1, "upserted"),
        (2, "upserted"),
        (1, "upserted"),
        (2, "deleted"),
        (3, "upserted"),
    ]


def test_ingests_at_once_write_each_file_once(database, root):
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda size: run(database, root, batch_streams=size), (1, 3, 7, 40)))
    assert sum(r.new for r in reports) == 40 and [f for r in reports for f in r.failed] == []
    assert [(v, t) for _, v, t in events(database)] == [(1, "entity.upserted")] * 40


def test_a_stream_of_another_producer_is_left_alone(database, root):
    with connected(database) as connection:
        append(connection, "python-m00", NewEvent("entity.upserted", {"kind": "k", "name": "n"}))
    report = run(database, root)
    assert (report.new, [f.reason for f in report.failed]) == (
        39,
        ["its stream 'python-m00' belongs to another producer"],
    )
