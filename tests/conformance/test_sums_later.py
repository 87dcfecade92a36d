"""Generations made before there were marks: they are written and read as ever, and say that they carry none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tantivy

from projectors.marks import UNMARKED, Sum
from projectors.sinks import (
    chroma_codec,
    elasticsearch,
    elasticsearch_form,
    ladybug,
    neo4j_form,
    postgres,
    tantivy_shelf,
)
from projectors.sinks import tantivy as tantivy_sink
from projectors.sinks.protocol import Summing
from tests.conformance.samples import sample
from tests.conformance.sinks import Space, Store, expected, held, put, where
from tests.conformance.test_sums import sums_of

MARKING = (chroma_codec, elasticsearch_form, ladybug, neo4j_form, postgres, tantivy_sink)
OURS = ("chroma", "elasticsearch", "ladybug", "neo4j", "postgres", "tantivy")
"""Whose modules are made to forget marks; a sink of another package never was without."""
OLD = 30


def _ladybug(patch: pytest.MonkeyPatch) -> None:
    for name in ("_CREATE_NODES_TABLE", "_CREATE_NODES"):
        text = getattr(ladybug, name)
        for new in (", slice INT64, mark INT64", ", slice: r.slice, mark: r.mark"):
            text = text.replace(new, "")
        patch.setattr(ladybug, name, text)
    for name in ("_ADD_SLICE", "_ADD_MARK"):
        patch.setattr(ladybug, name, "RETURN 1")


def _elasticsearch(patch: pytest.MonkeyPatch) -> None:
    properties = {n: p for n, p in elasticsearch.MAPPINGS["properties"].items() if n not in elasticsearch.MARKS}
    patch.setattr(elasticsearch, "MAPPINGS", {**elasticsearch.MAPPINGS, "properties": properties})
    source = elasticsearch_form._source
    patch.setattr(
        elasticsearch_form,
        "_source",
        lambda change: {name: v for name, v in source(change).items() if name not in elasticsearch.MARKS},
    )


def _tantivy(patch: pytest.MonkeyPatch) -> None:
    def schema() -> Any:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
        builder.add_integer_field("version", stored=True, fast=True)
        builder.add_unsigned_field("slot", fast=True)
        builder.add_boolean_field("live", stored=True, indexed=True)
        builder.add_text_field("title", stored=True)
        builder.add_text_field("text", stored=True)
        builder.add_bytes_field("body", stored=True)
        return builder.build()

    patch.setattr(tantivy_shelf, "schema", schema)


FORMER: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "ladybug": _ladybug,
    "elasticsearch": _elasticsearch,
    "tantivy": _tantivy,
}


@where(lambda store: store.entry in OURS)
def test_a_generation_from_before_the_marks_goes_on(store: Store, space: Space, kind: type) -> None:
    old = [put(sample(kind, f"k{n}", n), 1) for n in range(OLD)]
    with pytest.MonkeyPatch.context() as patch:
        for module in MARKING:
            patch.setattr(module, "mark_of", lambda change: None)
        FORMER.get(store.entry, lambda _: None)(patch)
        with space.open() as sink:
            g = space.generation(sink)
            sink.apply(g, old)
    with space.open() as sink:
        sink.prepare(g)
        assert isinstance(sink, Summing)
        assert sink.sums(g) == {UNMARKED: Sum(OLD, 0)}
        assert held(sink, g) == expected(old)
        new = [put(sample(kind, f"k{n}", n + 1), 2) for n in range(10, OLD + 10)]
        sink.apply(g, new)
        assert held(sink, g) == expected([*old, *new])
        marked = {} if store.entry == "tantivy" else sums_of(new)  # its schemas are for good
        bare = OLD + 10 if store.entry == "tantivy" else 10
        assert sink.sums(g) == {**marked, UNMARKED: Sum(bare, 0)}
