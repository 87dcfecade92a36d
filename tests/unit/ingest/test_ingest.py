"""One event for each change and none for what stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outbox.event import NewEvent
from outbox.ingest import Options, SourceError, ingest
from tests.unit.ingest.memory_log import MemoryLog


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    write(folder, "pkg/__init__.py", "'''A package.'''")
    write(folder, "pkg/mod.py", "def f(): pass")
    write(folder, "README.md", "# Read me")
    return folder


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_first_ingest_is_one_event_a_file(root, log):
    report = ingest([root], log)
    assert sorted(log.streams) == ["python-pkg", "python-pkg.mod", "text-src/README.md"]
    assert (report.files, report.new, report.events, report.failed) == (3, 3, 3, ())
    assert {k: log.last("python-pkg.mod").meta[k] for k in ("source", "path")} == {
        "source": "src",
        "path": "pkg/mod.py",
    }


def test_nothing_is_written_for_what_has_not_changed(root, log):
    ingest([root], log)
    os.utime(root / "pkg/mod.py", (1, 1))
    report = ingest([root], log)
    assert (report.unchanged, report.events, len(log.batches)) == (3, 0, 1)


def test_a_changed_file_is_one_event_at_the_next_version(root, log):
    ingest([root], log)
    write(root, "pkg/mod.py", "def g(): pass")
    report = ingest([root], log)
    assert (report.changed, report.unchanged, report.events) == (1, 2, 1)
    assert [p["key"] for p in log.last("python-pkg.mod").data["parts"]] == ["g"]


def test_what_has_gone_is_deleted_once_and_comes_back_at_the_next_version(root, log):
    ingest([root], log)
    (root / "pkg/mod.py").unlink()
    assert ingest([root], log).deleted == 1
    assert ingest([root], log).events == 0
    write(root, "pkg/mod.py", "def f(): pass")
    assert ingest([root], log).new == 1
    assert log.types("python-pkg.mod") == ["upserted", "deleted", "upserted"]


def test_only_the_streams_of_the_sources_given_are_deleted(root, tmp_path, log):
    other = tmp_path / "other"
    write(other, "x.py", "")
    ingest([root, other], log)
    (other / "x.py").unlink()
    assert ingest([root], log).events == 0
    assert ingest([other], log).deleted == 1


def test_a_missing_root_deletes_nothing(root, tmp_path, log):
    ingest([root], log)
    root.rename(tmp_path / "moved")
    with pytest.raises(SourceError):
        ingest([root], log)
    assert len(log.batches) == 1


def test_nothing_is_written_if_one_of_the_paths_is_missing(root, tmp_path, log):
    with pytest.raises(SourceError):
        ingest([root, tmp_path / "missing"], log)
    assert log.batches == []


def test_a_file_that_cannot_be_read_keeps_its_last_good_state(root, log):
    ingest([root], log)
    write(root, "pkg/mod.py", "def f(:")
    report = ingest([root], log)
    assert log.types("python-pkg.mod") == ["upserted"]
    assert [(f.path, f.reason) for f in report.failed] == [(f"{root}/pkg/mod.py:1", "invalid syntax")]


def test_a_file_that_outgrows_the_bound_is_not_taken_to_be_gone(root, log):
    ingest([root], log)
    report = ingest([root], log, options=Options(file_bytes_max=5))
    assert report.deleted == 0 and len(report.failed) == 3 and len(log.batches) == 1


def test_a_folder_that_cannot_be_listed_deletes_nothing(root, log, monkeypatch):
    """Permissions do not bind root, under which tests may run: so the refusal comes from the call itself."""
    ingest([root], log)
    real = os.scandir

    def refusing(path):
        if Path(path).name == "pkg":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = ingest([root], log)
    assert report.deleted == 0
    assert [f.reason for f in report.failed] == ["Permission denied"]


def test_a_single_file_updates_itself_and_deletes_nothing(root, log):
    ingest([root], log)
    (root / "pkg/__init__.py").write_text("x = 1")
    (root / "README.md").unlink()
    report = ingest([root / "pkg/__init__.py"], log)
    assert (report.files, report.changed, report.deleted) == (1, 1, 0)


def test_a_stream_of_another_source_is_a_conflict_and_not_overwritten(root, tmp_path, log):
    other = tmp_path / "other"
    write(other, "pkg/mod.py", "x = 1")
    write(other, "fine.py", "")
    ingest([root], log)
    report = ingest([other], log)
    assert [f.reason for f in report.failed] == ["its stream 'python-pkg.mod' belongs to the source 'src'"]
    assert log.types("python-pkg.mod") == ["upserted"] and log.types("python-fine") == ["upserted"]
    assert ingest([other], log).deleted == 0


def test_two_sources_of_one_module_in_one_ingest_leave_it_to_the_first(root, tmp_path, log):
    other = tmp_path / "other"
    write(other, "pkg/mod.py", "x = 1")
    report = ingest([root, other], log)
    assert log.last("python-pkg.mod").meta["source"] == "src" and len(report.failed) == 1


def test_a_stream_of_another_producer_is_a_conflict(root, log):
    log.write("python-pkg", NewEvent("entity.upserted", {"kind": "k", "name": "n"}))
    report = ingest([root], log)
    assert [f.reason for f in report.failed] == ["its stream 'python-pkg' belongs to another producer"]


@pytest.mark.parametrize("order", [0, 1])
def test_a_file_moved_between_sources_changes_hands_at_once(root, tmp_path, log, order):
    other = tmp_path / "other"
    write(other, "keep.py", "")
    ingest([root, other], log)
    write(other, "pkg/mod.py", (root / "pkg/mod.py").read_text())
    (root / "pkg/mod.py").unlink()
    report = ingest([root, other][:: -1 if order else 1], log)
    assert report.failed == ()
    assert log.types("python-pkg.mod") == ["upserted", "deleted", "upserted"]
    assert log.last("python-pkg.mod").meta["source"] == "other"


def test_a_module_that_becomes_a_package_stays_one_stream(root, log):
    ingest([root], log)
    text = (root / "pkg/mod.py").read_text()
    (root / "pkg/mod.py").unlink()
    write(root, "pkg/mod/__init__.py", text)
    report = ingest([root], log)
    assert (report.changed, report.deleted) == (1, 0)
    assert log.last("python-pkg.mod").data["properties"]["package"] is True


def test_batches_are_bounded_by_count_and_by_bytes(tmp_path, log):
    for number in range(10):
        write(tmp_path / "r", f"m{number}.py", "#" * 100)
    ingest([tmp_path / "r"], log, options=Options(batch_streams=4))
    assert [len(b) for b in log.batches] == [4, 4, 2]
    other = MemoryLog()
    ingest([tmp_path / "r"], other, options=Options(batch_bytes=300))
    assert [len(b) for b in other.batches] == [3, 3, 3, 1]


def test_stores_can_begin_before_everything_is_read(tmp_path, log):
    for number in range(4):
        write(tmp_path / "r", f"m{number}.py", "#" * 400_000)
    ingest([tmp_path / "r"], log)
    assert [len(b) for b in log.batches] == [1, 1, 1, 1]


def test_the_order_is_the_same_every_time(root, log):
    again = MemoryLog()
    ingest([root], log)
    ingest([root], again)
    streams = [[w.stream for b in x.batches for w in b] for x in (log, again)]
    assert streams[0] == streams[1] == ["text-src/README.md", "python-pkg", "python-pkg.mod"]


def test_an_interrupted_ingest_goes_on_where_it_stopped(tmp_path, log):
    for number in range(9):
        write(tmp_path / "r", f"m{number}.py", "")

    def stop_at_third(_writes) -> None:
        if len(log.batches) == 2:
            raise KeyboardInterrupt

    log.before_append = stop_at_third
    with pytest.raises(KeyboardInterrupt):
        ingest([tmp_path / "r"], log, options=Options(batch_streams=3))
    log.before_append = None
    report = ingest([tmp_path / "r"], log, options=Options(batch_streams=3))
    assert (report.unchanged, report.new) == (6, 3)
    assert all(len(events) == 1 for events in log.streams.values())


def test_two_ingests_at_once_write_each_change_once(root, log):
    def other_first(_writes) -> None:
        log.before_append = None
        ingest([root], log)

    log.before_append = other_first
    report = ingest([root], log)
    assert (report.unchanged, report.events, report.failed) == (3, 0, ())
    assert all(len(events) == 1 for events in log.streams.values())


def test_a_conflict_on_one_stream_is_decided_again_and_the_rest_written(root, log):
    def touch_one(_writes) -> None:
        log.before_append = None
        meta = {"source": "src", "digest": "older"}
        log.write("python-pkg", NewEvent("entity.upserted", {"kind": "k", "name": "n"}, meta=meta))

    log.before_append = touch_one
    report = ingest([root], log)
    assert (report.new, report.changed, report.failed) == (2, 1, ())
    assert len(log.streams["python-pkg"]) == 2


def test_a_stream_that_never_rests_is_given_up_after_bounded_attempts_and_stops_no_other(root, log):
    alone = []

    def always(writes) -> None:
        alone.extend(w.stream for w in writes if len(writes) == 1)
        meta = {"source": "src", "digest": str(len(log.streams.get("python-pkg", ())))}
        if any(w.stream == "python-pkg" for w in writes):
            log.write("python-pkg", NewEvent("entity.upserted", {"kind": "k", "name": "n"}, meta=meta))

    log.before_append = always
    report = ingest([root], log, options=Options(attempts=3))
    assert alone.count("python-pkg") == 3
    assert [(f.path, f.reason) for f in report.failed] == [
        (str(root / "pkg/__init__.py"), "other writers keep changing its stream: try again")
    ]
    assert report.new == 2


def test_any_number_of_streams_that_another_ingest_takes_one_by_one_are_no_failure(tmp_path, log):
    for number in range(40):
        write(tmp_path / "r", f"m{number:02}.py", f"n = {number}")
    other = MemoryLog()
    ingest([tmp_path / "r"], other)
    theirs = [(stream, *events) for stream, events in other.streams.items()]

    def take_one(_writes) -> None:
        if theirs:
            log.write(*theirs.pop(0))

    log.before_append = take_one
    report = ingest([tmp_path / "r"], log, options=Options(attempts=2))
    assert report.failed == ()
    assert (report.new + report.unchanged, len(log.streams)) == (40, 40)
    assert all(len(events) == 1 for events in log.streams.values())


def test_a_file_written_again_by_another_ingest_is_not_deleted_under_it(root, log):
    ingest([root], log)
    (root / "README.md").unlink()

    def rewritten(_writes) -> None:
        log.before_append = None
        meta = {"source": "src", "digest": "newer"}
        log.write("text-src/README.md", NewEvent("entity.upserted", {"kind": "k", "name": "n"}, meta=meta))

    log.before_append = rewritten
    assert ingest([root], log).deleted == 0
    assert log.types("text-src/README.md") == ["upserted", "upserted"]


def test_one_event_the_log_refuses_does_not_stop_the_others(tmp_path, log, monkeypatch):
    for number in range(7):
        write(tmp_path / "r", f"m{number}.py", f"n = {number}")
    from outbox.errors import InvalidEvent

    def refuse_m3(writes) -> None:
        if any(w.stream == "python-m3" for w in writes):
            raise InvalidEvent("too large")

    log.before_append = refuse_m3
    report = ingest([tmp_path / "r"], log)
    assert report.new == 6
    assert [(f.path, f.reason) for f in report.failed] == [(f"{tmp_path}/r/m3.py", "the log refuses it: too large")]


def test_a_name_that_cannot_be_a_stream_is_reported_and_the_others_go_on(tmp_path, log):
    write(tmp_path / "r", "fine.py", "")
    write(tmp_path / "r", "a\nb.md", "")
    (tmp_path / "r" / os.fsdecode(b"\xff.txt")).write_text("")
    report = ingest([tmp_path / "r"], log)
    assert list(log.streams) == ["python-fine"]
    assert len(report.failed) == 2
    for failure in report.failed:
        failure.path.encode()
        failure.reason.encode()


def test_replaced_bytes_are_noted(tmp_path, log):
    write(tmp_path / "r", "x.md", "")
    (tmp_path / "r/x.md").write_bytes(b"# \xff")
    report = ingest([tmp_path / "r"], log)
    assert report.new == 1 and "not UTF-8" in report.notes[0].reason


def test_progress_counts_up_to_all_files(root, log):
    told = []
    ingest([root], log, progress=lambda done, total, path: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
