"""What is Elasticsearch's own about its sink and reader, on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from outbox.errors import RecordsRefused, SettingsError, StoreUnavailable
from projectors.query.elasticsearch import open_reader
from projectors.record import Change, Document
from projectors.sinks.elasticsearch import (
    BULK_BYTES_MAX,
    ElasticsearchSink,
    alias_name,
    index_name,
    open_sink,
)
from projectors.sinks.elasticsearch_form import DOCUMENT_BYTES_MAX

G = "g1"


@pytest.fixture
def settings(address: Any) -> dict[str, Any]:
    return {"url": address("elasticsearch")}


@pytest.fixture
def server(settings: dict[str, Any]) -> Iterator[Elasticsearch]:
    with Elasticsearch(settings["url"]) as client:
        yield client


@pytest.fixture
def sink(projection: str, settings: dict[str, Any]) -> Iterator[ElasticsearchSink]:
    with open_sink(projection, settings) as sink:
        sink.prepare(G)
        yield sink
        for generation in (G, "g2"):
            sink.drop(generation)


def put(key: str, version: int = 1, text: str = "text", **properties: Any) -> Change:
    return Change(key, f"doc-{key}", version, Document(key, "kind", f"title {key}", text, properties))


def text_of(server: Elasticsearch, projection: str, key: str) -> str:
    return str(server.get(index=index_name(projection, G), id=key)["_source"]["text"])


def keys(sink: ElasticsearchSink, generation: str = G) -> set[str]:
    return {stored.key for stored in sink.scan(generation)}


def test_a_tombstone_outlives_the_memory_for_deletes(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    server.indices.put_settings(index=index_name(projection, G), settings={"index.gc_deletes": "0s"})
    sink.apply(G, [put("a", 1)])
    sink.apply(G, [Change("a", "doc-a", 3, None)])
    server.indices.flush(index=index_name(projection, G), force=True)
    server.indices.forcemerge(index=index_name(projection, G), max_num_segments=1)
    sink.apply(G, [put("a", 2)])
    assert keys(sink) == set()


def test_an_edit_that_names_no_version_holds_up_no_later_write(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.apply(G, [put("a", 1), put("b", 1)])
    for _ in range(5):
        server.update(index=index_name(projection, G), id="a", doc={"text": "edited by hand"})
    sink.apply(G, [put("a", 2, "new"), Change("b", "doc-b", 2, None)])
    assert text_of(server, projection, "a") == "new"
    assert keys(sink) == {"a"}


def test_an_edit_that_names_no_version_can_be_repaired(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.apply(G, [put("a", 3), put("b", 3), Change("c", "doc-c", 3, None)])
    server.update(index=index_name(projection, G), id="a", doc={"text": "edited by hand"})
    server.delete(index=index_name(projection, G), id="b")
    server.index(index=index_name(projection, G), id="c", document={"key": "c", "text": "written by hand"})
    sink.apply(G, [put("a", 2), put("b", 2), put("a", 3)])
    assert text_of(server, projection, "a") == "edited by hand"
    sink.apply(G, [replace(c, repair=True) for c in (put("a", 3), put("b", 3), Change("c", "doc-c", 3, None))])
    assert text_of(server, projection, "a") == text_of(server, projection, "b") == "text"
    assert keys(sink) == {"a", "b"}


def test_a_tombstone_edited_by_hand_still_beats_an_older_write(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.apply(G, [Change("a", "doc-a", 3, None)])
    server.update(index=index_name(projection, G), id="a", doc={"kind": "touched"})
    sink.apply(G, [put("a", 2)])
    assert keys(sink) == set()


def test_a_late_write_to_a_dropped_generation_makes_no_index(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.drop(G)
    with pytest.raises(StoreUnavailable):
        sink.apply(G, [put("a")])
    assert not server.indices.exists(index=index_name(projection, G))


def test_a_refused_document_is_named_and_does_not_stop_the_others(sink: ElasticsearchSink) -> None:
    too_large = put("large", text="x" * (DOCUMENT_BYTES_MAX + 1))
    bad_name = put("named", **{"n" * 40_000: "x"})
    no_text = put("surrogate", text="\ud800")
    with pytest.raises(RecordsRefused) as raised:
        sink.apply(G, [put("a"), too_large, bad_name, no_text, put("b")])
    assert raised.value.reasons.keys() == {"large", "named", "surrogate"}
    assert keys(sink) == {"a", "b"}


def test_an_index_that_was_restored_without_its_aliases_is_written_again(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.apply(G, [put("a")])
    server.indices.delete_alias(index=index_name(projection, G), name="*")
    with pytest.raises(StoreUnavailable):
        sink.apply(G, [put("b")])
    sink.prepare(G)
    sink.apply(G, [put("b")])
    assert keys(sink) == {"a", "b"}


def test_while_an_index_is_closed_no_document_is_refused_for_it(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    server.indices.close(index=index_name(projection, G))
    with pytest.raises(StoreUnavailable, match="closed"):
        sink.apply(G, [put("a"), put("b")])
    server.indices.open(index=index_name(projection, G), wait_for_active_shards=1)
    sink.apply(G, [put("a"), put("b")])
    assert keys(sink) == {"a", "b"}


def test_a_batch_beyond_the_size_of_a_request_is_split(sink: ElasticsearchSink) -> None:
    changes = [put(f"k{n}", text="word " * 400_000) for n in range(BULK_BYTES_MAX // 2_000_000 + 2)]
    sink.apply(G, changes)
    assert keys(sink) == {change.key for change in changes}


def test_the_alias_serves_one_generation_and_hides_tombstones(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.prepare("g2")
    sink.apply(G, [put("old")])
    sink.apply("g2", [put("new"), put("gone"), Change("gone", "doc-gone", 2, None)])
    for generation, served in ((G, {"old"}), ("g2", {"new"}), (G, {"old"})):
        sink.switch(generation)
        server.indices.refresh(index=alias_name(projection))
        hits = server.search(index=alias_name(projection))["hits"]["hits"]
        assert {hit["_source"]["key"] for hit in hits} == served


def test_behind_the_alias_searches_find_what_was_written_just_before_it_moved(
    sink: ElasticsearchSink, server: Elasticsearch, projection: str
) -> None:
    sink.prepare("g2")
    # Only by hand, as it is for the first second: nothing that this test waits for may refresh it.
    server.indices.put_settings(index=index_name(projection, "g2"), settings={"refresh_interval": -1})
    sink.apply(G, [put("a")])
    sink.switch(G)
    sink.apply("g2", [put("a")])
    sink.switch("g2")
    assert server.count(index=alias_name(projection))["count"] == 1


def test_properties_can_be_filtered_by_users(sink: ElasticsearchSink, server: Elasticsearch, projection: str) -> None:
    sink.apply(G, [put("a", language="python", tags=["x", "y"]), put("b", language="go")])
    sink.switch(G)
    server.indices.refresh(index=alias_name(projection))
    found = server.search(index=alias_name(projection), query={"term": {"properties.tags": "y"}})
    assert [hit["_source"]["key"] for hit in found["hits"]["hits"]] == ["a"]


def test_names_that_had_to_be_changed_stay_apart() -> None:
    assert alias_name("code") == "code"
    assert len({alias_name(name) for name in ("code", "Code", "co de", "co/de", "CODE", "_code", "")}) == 7


def test_a_question_of_many_words_is_no_error(
    sink: ElasticsearchSink, projection: str, settings: dict[str, Any]
) -> None:
    sink.apply(G, [put("a", text="long " * 50_000 + "needle")])
    assert keys(sink) == {"a"}
    with open_reader(projection, settings) as reader:
        assert reader.match(G, "\u4f60\u597d" * 5_000, 10) == []
        assert [hit.key for hit in reader.match(G, "needle \ud800 " + "w " * 5_000, 10)] == ["a"]
        assert reader.match(G, "needle", 10)[0].snippet


@pytest.mark.parametrize(
    "wrong", [{}, {"url": "nowhere"}, {"url": "http://h:1", "shards": 0}, {"url": "http://h:1", "x": 1}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="setting"), open_sink("p", wrong):
        pass
