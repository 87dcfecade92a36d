"""What only Chroma needs: records it refuses, a server that goes and comes back, a folder shared in a process."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.local.local import Local
from outbox.errors import RecordsRefused, SettingsError, StoreError, StoreUnavailable
from projectors.marks import UNMARKED, mark_of, slice_of, summed
from projectors.query.chroma import ChromaReader, open_reader
from projectors.record import Change, Value, Vector
from projectors.sinks import chroma, chroma_codec, chroma_engine
from projectors.sinks.chroma import ChromaSink, open_sink
from projectors.sinks.chroma_engine import EngineCollection
from tests.conformance.samples import DIMENSIONS, embedding, sample
from tests.conformance.sinks import expected, held, put, tombstone

G = "g1"


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, str]:
    return {"path": str(tmp_path / "chroma")}


@pytest.fixture
def sink(folder: dict[str, str]) -> Iterator[ChromaSink]:
    with open_sink("things", folder) as sink:
        sink.prepare(G)
        yield sink


def vectors(count: int, version: int = 1) -> list[Change]:
    return [put(sample(Vector, f"k{n}", n), version) for n in range(count)]


def test_refused_records_are_named_and_all_others_are_applied(sink: ChromaSink) -> None:
    good = vectors(20)
    bad = {
        "no embedding": Vector("no embedding", "t"),
        "too few": Vector("too few", "t", {}, [1.0]),
        "too many": Vector("too many", "t", {}, [1.0] * (DIMENSIONS + 1)),
        "not a number": Vector("not a number", "t", {}, [math.nan] * DIMENSIONS),
        "endless": Vector("endless", "t", {}, [math.inf] * DIMENSIONS),
        "no vector": Value("no vector", 1),
        "": Vector("", "t", {}, embedding("x")),
        "no characters": Vector("no characters", "\ud800", {}, embedding("x")),
        "too great": Vector("too great", "t", {"n": 2**70}, embedding("x")),
    }
    mixed = (
        good[:10] + [put(record, 1) for record in bad.values()] + good[10:] + [tombstone("gone", 1), tombstone("", 1)]
    )
    with pytest.raises(RecordsRefused) as refused:
        sink.apply(G, mixed)
    assert refused.value.reasons.keys() == bad.keys()
    assert all(refused.value.reasons.values())
    assert held(sink, G) == expected(good)


def test_a_refused_change_leaves_the_record_that_was_there(sink: ChromaSink) -> None:
    sink.apply(G, vectors(3))
    with pytest.raises(RecordsRefused):
        sink.apply(G, [put(Vector("k1", "t", {}, [1.0]), 2), put(sample(Vector, "k2", 9), 2)])
    assert held(sink, G) == expected([*vectors(3), put(sample(Vector, "k2", 9), 2)])


def test_stated_dimensions_are_held_from_the_first_record(folder: dict[str, str]) -> None:
    with open_sink("stated", {**folder, "dimensions": DIMENSIONS}) as sink:
        sink.prepare(G)
        with pytest.raises(RecordsRefused) as refused:
            sink.apply(G, [put(Vector("first", "t", {}, [1.0]), 1), *vectors(3)])
        assert refused.value.reasons.keys() == {"first"}
        assert held(sink, G) == expected(vectors(3))


def test_requests_are_bounded_in_rows_and_bytes(sink: ChromaSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma, "REQUEST_BYTES", 2_000)
    rows = [chroma.encode(change) for change in vectors(30)]
    parts = list(chroma._bounded(rows, 100))
    assert [row for part in parts for row in part] == rows
    assert len(parts) > 5
    assert [len(part) for part in chroma._bounded(rows[:3], 1)] == [1, 1, 1]
    assert all(len(part) == 1 or sum(row.size for row in part) <= 2_000 for part in parts)
    sink.apply(G, vectors(30))
    assert held(sink, G) == expected(vectors(30))


def test_a_tombstone_that_was_marked_but_not_deleted_deletes_when_applied_again(sink: ChromaSink) -> None:
    """What a crash between the two steps leaves."""
    sink.apply(G, vectors(2))
    chroma._mark(sink._held(G).tombstones, [tombstone("k1", 5)])
    assert held(sink, G) == expected(vectors(2))
    sink.apply(G, [put(sample(Vector, "k1", 4), 4)])
    sink.apply(G, [tombstone("k1", 5)])
    assert held(sink, G) == expected(vectors(1))


def test_parts_that_did_not_change_stay_as_they_are(sink: ChromaSink) -> None:
    first = Vector("k", "text", {"a": 1, "gone": True}, embedding("k"))
    same_vector = Vector("k", "text", {"a": 2}, embedding("k"))
    other_text = Vector("k", "other text", {"a": 2}, embedding("k"))
    other_length = Vector("k", "other text", {"a": 2}, [2 * x for x in embedding("k")])
    other_vector = Vector("k", "other text", {"a": 2}, embedding("l"))
    for version, record in enumerate((first, same_vector, other_text, other_length, other_vector, first), start=1):
        sink.apply(G, [put(record, version)])
        assert held(sink, G) == expected([put(record, version)])


Compared = list[tuple[list[str], list[str]]]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """The ids of what was read to be compared, as they turned out: the same, and others."""
    found: Compared = []
    by_content = chroma._by_content

    def noted(records: Any, rows: Any) -> Any:
        same, other = by_content(records, rows)
        if rows:
            found.append(([row.id for row in same], [row.id for row in other]))
        return same, other

    monkeypatch.setattr(chroma, "_by_content", noted)
    return found


OLD, NEW = Vector("k", "text", {"a": 1}, embedding("k")), Vector("k", "text", {"a": 1}, embedding("l"))


def test_a_vector_that_changed_is_written_without_being_read(sink: ChromaSink, compared: Compared) -> None:
    sink.apply(G, [put(OLD, 1)])
    sink.apply(G, [put(NEW, 2)])
    assert compared == []
    assert held(sink, G) == expected([put(NEW, 2)])


def test_a_vector_that_did_not_change_is_not_sent_again(sink: ChromaSink, compared: Compared) -> None:
    sink.apply(G, [put(OLD, 1)])
    sink.apply(G, [put(replace(OLD, metadata={"a": 2}), 2)])
    assert compared == [(["k"], [])]
    assert held(sink, G) == expected([put(replace(OLD, metadata={"a": 2}), 2)])


@pytest.mark.parametrize("bits", [0, 1], ids=["written before there were hashes", "of the same hash by chance"])
def test_a_hash_that_does_not_tell_them_apart_is_not_relied_on(
    bits: int, sink: ChromaSink, compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroma_codec, "_content", lambda *_: bits)
    sink.apply(G, [put(OLD, 1)])
    sink.apply(G, [put(NEW, 2)])
    assert compared == [([], ["k"])]
    assert held(sink, G) == expected([put(NEW, 2)])


def rows(sink: ChromaSink) -> Any:
    """The collection of the generation's records, for what other hands do to it."""
    return sink._held(G).records


def test_what_stays_of_the_metadata_is_not_sent_again(sink: ChromaSink, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[set[str]]] = []
    update = type(rows(sink)).update

    def noted(self: Any, **given: Any) -> None:
        sent.append([set(metadata) for metadata in given["metadatas"]])
        update(self, **given)

    monkeypatch.setattr(type(rows(sink)), "update", noted)
    first = Vector("k", "text", {"same": 1, "also": "x", "kind": 1, "gone": 2}, embedding("k"))
    second = Vector("k", "text", {"same": 1, "also": "x", "kind": True, "new": 3}, embedding("k"))
    for version, record in enumerate((first, second, replace(second, text="other"), first), start=1):
        sink.apply(G, [put(record, version)])
        assert held(sink, G) == expected([put(record, version)])
    assert sent == [[{"_g", "kind", "gone", "new"}], [{"_g"}], [{"_g", "kind", "gone", "new"}]]


def test_rows_of_the_form_before_are_read_and_take_the_new_one(sink: ChromaSink) -> None:
    """Each name by itself, as all rows were written once."""
    now = [put(sample(Vector, f"k{n}", n), 3) for n in range(4)]
    sink.apply(G, now)
    for change in now:
        found = rows(sink).get(ids=[change.key], include=["metadatas"])["metadatas"][0]
        guard = chroma_codec.guard_in(found)
        before = {"_v": 3, "_s": change.stream, "_h": guard.both, "_b": slice_of(change.key), "_g": None}
        rows(sink).update(ids=[change.key], metadatas=[before])
    assert held(sink, G) == expected(now)
    assert sink.sums(G) == summed(mark_of(change) for change in now)
    sink.apply(G, [put(sample(Vector, "k0", 9), 2), tombstone("k1", 2)])
    assert held(sink, G) == expected(now)
    later = [put(sample(Vector, "k0", 9), 4), put(sample(Vector, "k2", 2), 4)]
    sink.apply(G, [*later, tombstone("k1", 4)])
    assert held(sink, G) == expected([*later, now[3]])
    kept = rows(sink).get(ids=["k0", "k2"], include=["metadatas"])["metadatas"]
    assert all(not metadata.keys() & {"_v", "_s", "_h", "_b"} for metadata in kept)


@pytest.mark.parametrize("by_hand", [{"_g": "nonsense"}, {"_g": 7}, {"_g": None, "name": "x"}])
def test_a_row_whose_guard_somebody_spoiled_is_seen_and_written_over(by_hand: dict[str, Any], sink: ChromaSink) -> None:
    sink.apply(G, vectors(2))
    rows(sink).update(ids=["k1"], metadatas=[by_hand])
    assert held(sink, G) != expected(vectors(2))
    assert UNMARKED in sink.sums(G)
    sink.apply(G, vectors(2))
    assert held(sink, G) == expected(vectors(2))


def test_two_projections_in_one_folder_are_apart(folder: dict[str, str], sink: ChromaSink) -> None:
    sink.apply(G, vectors(3))
    with open_sink("things.other", folder) as other:
        other.prepare(G)
        other.apply(G, vectors(5, version=2))
        assert held(other, G) == expected(vectors(5, version=2))
        other.drop(G)
    assert held(sink, G) == expected(vectors(3))


def test_a_reader_outlives_the_sink_it_shares_a_folder_with(folder: dict[str, str]) -> None:
    with open_reader("things", folder) as reader:
        with open_sink("things", folder) as sink:
            sink.prepare(G)
            sink.apply(G, vectors(3))
        assert len(reader.nearest(G, embedding("k"), 5)) == 3
        with open_sink("things", folder) as sink:
            sink.apply(G, [tombstone("k1", 2)])
        assert {hit.key for hit in reader.nearest(G, embedding("k"), 5)} == {"k0", "k2"}


def test_a_generation_made_again_elsewhere_is_found_when_tried_again(folder: dict[str, str], sink: ChromaSink) -> None:
    with open_reader("things", folder) as reader, open_sink("things", folder) as other:
        sink.apply(G, vectors(3))
        reader.nearest(G, embedding("k"), 1)
        other.drop(G)
        for attempt in (lambda: sink.apply(G, vectors(1)), lambda: reader.nearest(G, embedding("k"), 1)):
            with pytest.raises(StoreUnavailable, match="prepare"):
                attempt()
        other.prepare(G)
        sink.apply(G, vectors(2))
        assert held(sink, G) == expected(vectors(2))
        assert len(reader.nearest(G, embedding("k"), 5)) == 2


def test_a_question_that_fits_no_vector_is_refused(folder: dict[str, str], sink: ChromaSink) -> None:
    sink.apply(G, vectors(3))
    with open_reader("things", folder) as reader:
        for question in ([1.0, 2.0], [math.nan] * DIMENSIONS):
            with pytest.raises(StoreError) as refused:
                reader.nearest(G, question, 5)
            assert not isinstance(refused.value, StoreUnavailable)


@pytest.mark.parametrize(
    "settings", [{}, {"path": "x", "url": "http://localhost:1"}, {"url": "localhost:8000"}, {"url": "ftp://x"}]
)
def test_settings_that_name_no_store_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="chroma"), open_sink("things", settings):
        pass


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dimensions": "many"}, "dimensions"),
        ({"dimension": 8}, "dimension"),
        ({"path": 5}, "path"),
        ({"url": "http://localhost:1", "timeout_s": "soon"}, "timeout_s"),
        ({"url": "http://localhost:1", "timeout_s": 0}, "timeout_s"),
        ({"url": "http://localhost:1", "headers": "Authorization"}, "headers"),
        ({"url": "http://localhost:99999"}, "url"),
        ({"url": "http://localhost:port"}, "url"),
        ({"url": "http://[::1"}, "url"),
    ],
)
def test_wrong_settings_are_named(folder: dict[str, str], settings: dict[str, Any], named: str) -> None:
    whole = settings if "url" in settings else folder | settings
    with pytest.raises(SettingsError, match=f"'{named}'"), open_sink("things", whole):
        pass


def test_dimensions_from_the_environment_are_a_number(folder: dict[str, str]) -> None:
    with open_sink("stated", {**folder, "dimensions": str(DIMENSIONS)}) as sink:
        sink.prepare(G)
        sink.apply(G, vectors(3))
        assert held(sink, G) == expected(vectors(3))


def test_a_folder_that_cannot_be_made_is_an_error_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((SettingsError, StoreError)), open_sink("things", {"path": str(tmp_path / "file")}):
        pass


def test_a_server_that_goes_is_unavailable_and_loses_nothing_when_it_comes_back() -> None:
    with Local() as local:
        (server,) = local.start("chroma")
        settings = {"url": server.address, "timeout_s": 2}
        with open_sink("things", settings) as sink, open_reader("things", settings) as reader:
            sink.prepare(G)
            sink.apply(G, vectors(200))
            local.pause("chroma")
            _is_unavailable(sink, reader)
            local.kill("chroma")
            _is_unavailable(sink, reader)
            local.restart("chroma")
            assert held(sink, G) == expected(vectors(200))
            sink.apply(G, vectors(200, version=2))
            assert held(sink, G) == expected(vectors(200, version=2))
            assert reader.nearest(G, embedding("k"), 1)


def test_nothing_is_kept_of_generations_that_were_dropped(
    folder: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader kept a collection of each generation that it was ever asked about."""
    alive: weakref.WeakSet[EngineCollection] = weakref.WeakSet()

    class Watched(EngineCollection):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            alive.add(self)

    monkeypatch.setattr(chroma_engine, "EngineCollection", Watched)
    with open_sink("dropped", folder) as sink, open_reader("dropped", folder) as reader:
        for number in range(4):
            sink.prepare(f"g{number}")
            sink.apply(f"g{number}", vectors(1))
            assert reader.nearest(f"g{number}", embedding("k"), 1)
            sink.drop(f"g{number - 1}")
        gc.collect()
        assert {collection.name for collection in alive} == {"dropped.g3.records", "dropped.g3.tombstones"}


def _is_unavailable(sink: ChromaSink, reader: ChromaReader) -> None:
    began_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        sink.apply(G, vectors(1, version=2))
    with pytest.raises(StoreUnavailable):
        list(sink.scan(G))
    with pytest.raises(StoreUnavailable):
        reader.nearest(G, embedding("k"), 1)
    assert time.monotonic() - began_s < 15
