"""What only the Tantivy sink and reader promise, on real indexes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import RecordsRefused, SettingsError, StoreError, StoreUnavailable
from projectors.query.tantivy import WORDS_MAX, TantivyReader, open_reader
from projectors.record import Change, Document, Node
from projectors.sinks import tantivy as sinks_tantivy
from projectors.sinks.tantivy import KEY_BYTES_MAX, TantivySink, open_sink

WRITES = """
import sys
from projectors.record import Change, Document
from projectors.sinks.tantivy import open_sink
with open_sink("p", {"path": sys.argv[1]}) as sink:
    sink.prepare("g")
    for line in sys.stdin:
        sink.apply("g", [Change("k", "thing-k", int(line), Document("k", "kind", "title", f"word{line}"))])
        print("applied", flush=True)
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    return {"path": str(tmp_path / "text")}


@pytest.fixture
def sink(settings: dict[str, str]) -> Iterator[TantivySink]:
    with open_sink("p", settings) as sink:
        sink.prepare("g")
        yield sink


@pytest.fixture
def reader(settings: dict[str, str], sink: TantivySink) -> Iterator[TantivyReader]:
    with open_reader("p", settings) as reader:
        yield reader


def document(key: str, version: int = 1, title: str = "title", text: str = "text") -> Change:
    return Change(key, f"thing-{key}", version, Document(key, "kind", title, text, {"version": version}))


def files(settings: dict[str, str]) -> dict[str, int]:
    folder = Path(settings["path"]) / "p" / "g"
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def writer(settings: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes one document for each version it is told."""
    command = [sys.executable, "-c", WRITES, settings["path"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            yield writer
        finally:
            writer.kill()


def write(writer: subprocess.Popen[str], version: int) -> None:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(f"{version}\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "applied\n"


def test_a_reader_sees_what_another_process_has_applied(
    settings: dict[str, str], writer: subprocess.Popen[str]
) -> None:
    write(writer, 1)
    with open_reader("p", settings) as reader:
        for version in range(2, 8):
            write(writer, version)
            assert [hit.key for hit in reader.match("g", f"word{version}", 5)] == ["k"]
            assert list(reader.match("g", f"word{version - 1}", 5)) == []


def test_an_index_that_another_process_writes_is_unavailable_until_it_is_killed(
    settings: dict[str, str], writer: subprocess.Popen[str]
) -> None:
    write(writer, 1)
    with open_sink("p", settings) as sink:
        with pytest.raises(StoreUnavailable, match="another process"):
            sink.apply("g", [document("k", 5)])
        writer.kill()
        writer.wait()
        sink.apply("g", [document("k", 5)])
        assert [stored.version for stored in sink.scan("g")] == [5]


def test_a_batch_that_was_overtaken_writes_nothing(sink: TantivySink, settings: dict[str, str]) -> None:
    batch = [document(f"k{n}") for n in range(100)]
    sink.apply("g", batch)
    before = files(settings)
    sink.apply("g", batch)
    assert files(settings) == before


def test_many_small_batches_do_not_leave_many_segments(sink: TantivySink, settings: dict[str, str]) -> None:
    for n in range(150):
        sink.apply("g", [document(f"k{n % 40}", n + 1)])
    assert len({name.partition(".")[0] for name in files(settings)}) < 60
    assert len(list(sink.scan("g"))) == 40


def test_a_scan_is_of_one_snapshot(sink: TantivySink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_tantivy, "PAGE_DOCUMENTS", 10)
    sink.apply("g", [document(f"k{n}") for n in range(200)])
    scan = sink.scan("g")
    seen = [next(scan)]
    sink.apply("g", [document(f"k{n}", 2) for n in range(200)])
    sink.apply("g", [document(f"new{n}") for n in range(200)])
    seen += scan
    assert sorted(stored.key for stored in seen) == sorted(f"k{n}" for n in range(200))
    assert {stored.version for stored in seen} == {1}


def test_records_that_cannot_be_indexed_do_not_keep_the_others_out(sink: TantivySink) -> None:
    fits, long = "k" * KEY_BYTES_MAX, "k" * (KEY_BYTES_MAX + 1)
    refused = {
        long: document(long),
        "half \ud800": document("half \ud800"),
        "text": document("text", text="\ud800"),
        "node": Change("node", "thing-node", 1, Node("node", "Kind", "name")),
        "number": Change("number", "thing-number", 1, Document("number", "k", "t", "t", {"n": 2**80})),
    }
    with pytest.raises(RecordsRefused) as caught:
        sink.apply("g", [*refused.values(), document("a"), document(fits)])
    assert caught.value.reasons.keys() == refused.keys()
    assert {stored.key for stored in sink.scan("g")} == {"a", fits}


def test_a_word_in_the_title_counts_more_than_one_in_the_text(sink: TantivySink, reader: TantivyReader) -> None:
    sink.apply(
        "g", [document("in_text", title="alpha", text="bravo"), document("in_title", title="bravo", text="alpha")]
    )
    assert [hit.key for hit in reader.match("g", "bravo", 5)] == ["in_title", "in_text"]


def test_a_snippet_shows_the_words_in_a_long_text(sink: TantivySink, reader: TantivyReader) -> None:
    text = "filler " * 2_000 + "the needle is here " + "filler " * 2_000
    sink.apply("g", [document("k", text=text), document("other", title="needle", text="only filler")])
    in_text, in_title = sorted(reader.match("g", "needle", 5), key=lambda hit: hit.key)
    assert "needle" in in_text.snippet
    assert len(in_text.snippet) < 400
    assert in_title.snippet == "only filler"


def test_words_beyond_the_bound_are_left_out_of_a_question(sink: TantivySink, reader: TantivyReader) -> None:
    sink.apply("g", [document("k", text="last")])
    words = [f"w{n}" for n in range(WORDS_MAX)]
    assert list(reader.match("g", " ".join([*words, "last"]), 5)) == []
    assert len(reader.match("g", " ".join([*words[1:], "last"]), 5)) == 1
    assert list(reader.match("g", "\ud800", 5)) == []


def test_readers_in_threads_beside_a_writer_see_one_of_its_commits(sink: TantivySink, reader: TantivyReader) -> None:
    sink.apply("g", [document(f"k{n}", 1, text="alpha") for n in range(50)])
    done = threading.Event()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            versions = {hit.properties["version"] for hit in reader.match("g", "alpha", 100)}
            assert len(versions) == 1
            asked += 1
        return asked

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for version in range(2, 20):
                sink.apply("g", [document(f"k{n}", version, text="alpha") for n in range(50)])
        finally:
            done.set()
        assert all(asked.result() > 0 for asked in asking)


def test_a_generation_that_was_not_prepared_is_an_error_that_says_so(sink: TantivySink, reader: TantivyReader) -> None:
    with pytest.raises(StoreError, match="prepare") as caught:
        sink.apply("g2", [document("a")])
    assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        reader.match("g2", "a", 5)


def test_a_generation_made_anew_is_seen_by_those_who_knew_the_old(
    settings: dict[str, str], sink: TantivySink, reader: TantivyReader
) -> None:
    sink.apply("g", [document("old", text="alpha")])
    with open_sink("p", settings) as other:
        other.drop("g")
        other.prepare("g")
    sink.apply("g", [document("new", text="alpha")])
    assert [hit.key for hit in reader.match("g", "alpha", 5)] == ["new"]


def test_a_generation_whose_drop_was_cut_off_is_made_anew(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(folder: Path) -> None:
        for file in folder.glob("*.store"):
            file.unlink()
        raise OSError("cut off")

    with open_sink("p", settings) as sink:
        sink.prepare("g")
        sink.apply("g", [document("old")])
        with monkeypatch.context() as patched, pytest.raises(StoreUnavailable, match="cut off"):
            patched.setattr(shutil, "rmtree", cut_off)
            sink.drop("g")
    with open_sink("p", settings) as sink:
        sink.prepare("g")
        assert list(sink.scan("g")) == []
        sink.apply("g", [document("new")])
        assert [stored.key for stored in sink.scan("g")] == ["new"]
        sink.drop("g")
        assert not list(Path(settings["path"]).glob("p/*"))


@pytest.mark.parametrize(("projection", "settings"), [("p", {}), ("../p", {"path": "x"}), ("a/b", {"path": "x"})])
def test_wrong_settings_are_refused(projection: str, settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError), open_sink(projection, settings):
        pass


def test_a_generation_cannot_name_another_folder(sink: TantivySink) -> None:
    with pytest.raises(SettingsError):
        sink.drop("../p")


def test_a_folder_that_cannot_be_made_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with open_sink("p", {"path": str(tmp_path / "file")}) as sink, pytest.raises(StoreUnavailable):
        sink.prepare("g")


WRITES_ONCE = """
import sys
from projectors.record import Change, Document
from projectors.sinks.tantivy import open_sink
with open_sink("p", {"path": sys.argv[1]}) as sink:
    sink.apply("g", [Change("k", "k", 5, Document("k", "K", "newer", "newer", {}))])
"""


def test_versions_are_read_when_no_other_process_can_write_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sinks_tantivy._versions
    others: list[int] = []

    def and_another_writes(*given: Any) -> dict[str, int]:
        versions = read(*given)
        run = subprocess.run([sys.executable, "-c", WRITES_ONCE, str(tmp_path)], capture_output=True, check=False)
        others.append(run.returncode)
        return versions

    with open_sink("p", {"path": str(tmp_path)}) as sink:
        sink.prepare("g")
        monkeypatch.setattr(sinks_tantivy, "_versions", and_another_writes)
        sink.apply("g", [Change("k", "k", 2, Document("k", "K", "older", "older", {}))])
        assert others != [0] or [stored.version for stored in sink.scan("g")] == [5]
