"""The canonical form of records: what two stores must agree on to be called equal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projectors.record import (
    DIGEST_BYTES,
    Change,
    Document,
    Edge,
    Node,
    Record,
    Row,
    Stored,
    Value,
    Vector,
    by_key,
    canonical,
    digest,
    stated,
)

BASE = {
    Vector: Vector("k", "text", {"a": 1, "b": "x"}, [0.5, -1.0]),
    Node: Node("k", "Kind", "name", {"a": 1, "b": [1, 2]}, [Edge("E", "t", {"w": 1}), Edge("F", "t")]),
    Document: Document("k", "kind", "title", "text", {"a": 1, "b": ["x"]}),
    Row: Row("k", {"a": 1, "b": {"c": None}}),
    Value: Value("k", {"a": 1, "b": [None]}),
}
OTHERS = [
    (Vector, {"key": "l"}),
    (Vector, {"text": "Text"}),
    (Vector, {"metadata": {"a": 1}}),
    (Vector, {"metadata": {"a": 1.0, "b": "x"}}),
    (Vector, {"metadata": {"a": True, "b": "x"}}),
    (Vector, {"metadata": {"a": "1", "b": "x"}}),
    (Vector, {"embedding": [0.5, 1.0]}),
    (Vector, {"embedding": [-1.0, 0.5]}),
    (Vector, {"embedding": [0.5, -1.0, 0.0]}),
    (Vector, {"embedding": []}),
    (Vector, {"embedding": None}),
    (Node, {"key": "l"}),
    (Node, {"kind": "kind"}),
    (Node, {"name": "Name"}),
    (Node, {"properties": {"a": 1, "b": [2, 1]}}),
    (Node, {"edges": [Edge("E", "t", {"w": 1})]}),
    (Node, {"edges": [Edge("E", "t", {"w": 2}), Edge("F", "t")]}),
    (Node, {"edges": [Edge("E", "u", {"w": 1}), Edge("F", "t")]}),
    (Node, {"edges": [Edge("G", "t", {"w": 1}), Edge("F", "t")]}),
    (Document, {"key": "l"}),
    (Document, {"kind": "Kind"}),
    (Document, {"title": "text", "text": "title"}),
    (Document, {"properties": {}}),
    (Row, {"key": "l"}),
    (Row, {"columns": {"a": 1}}),
    (Row, {"columns": {"a": 1, "b": {}}}),
    (Value, {"key": "l"}),
    (Value, {"value": None}),
    (Value, {"value": [{"a": 1, "b": [None]}]}),
]

scalars = (
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
properties = st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=4), scalars)


@pytest.mark.parametrize(("kind", "other"), OTHERS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_records_that_differ_have_different_digests(kind: type, other: dict) -> None:
    assert digest(BASE[kind]) != digest(dataclasses.replace(BASE[kind], **other))


@pytest.mark.parametrize("kind", BASE, ids=lambda kind: kind.__name__)
def test_a_digest_has_its_stated_length_and_stays_the_same(kind: type) -> None:
    assert len(digest(BASE[kind])) == DIGEST_BYTES
    assert digest(BASE[kind]) == digest(dataclasses.replace(BASE[kind]))


def test_kinds_with_the_same_parts_differ() -> None:
    assert digest(Row("k", {"a": 1})) != digest(Value("k", {"a": 1}))


def test_a_digest_is_the_same_in_every_run() -> None:
    """Digests are compared between processes and releases: a change of the canonical form must be deliberate."""
    assert canonical(BASE[Node]) == (
        b'["Node","k",["Kind","name",{"a":1,"b":[1,2]},[["E","t","{\\"w\\":1}"],["F","t","{}"]]]]'
    )
    assert canonical(BASE[Vector]) == b'["Vector","k",["text",{"a":1,"b":"x"},"0000003f000080bf"]]'
    assert digest(BASE[Value]).hex() == "1bdbdbf3c8a1108b681b3b5f7e99204f"


@given(properties)
@settings(derandomize=True, max_examples=100)
def test_the_order_of_names_does_not_count(given_properties: dict) -> None:
    turned = dict(reversed(given_properties.items()))
    for kind, name in ((Vector, "metadata"), (Node, "properties"), (Document, "properties"), (Row, "columns")):
        one, other = (dataclasses.replace(BASE[kind], **{name: p}) for p in (given_properties, turned))
        assert canonical(one) == canonical(other)


@given(properties, properties)
@settings(derandomize=True, max_examples=200)
def test_rows_are_equal_only_if_their_values_and_types_are(one: dict, other: dict) -> None:
    def shown(columns: dict) -> list[tuple[str, str]]:
        return sorted((name, repr(value)) for name, value in columns.items())

    assert (digest(Row("k", one)) == digest(Row("k", other))) == (shown(one) == shown(other))


def test_the_order_of_edges_does_not_count() -> None:
    turned = dataclasses.replace(BASE[Node], edges=BASE[Node].edges[::-1])
    assert digest(turned) == digest(BASE[Node])


def test_the_order_of_a_list_counts() -> None:
    assert digest(Row("k", {"a": [1, 2]})) != digest(Row("k", {"a": [2, 1]}))


def test_zero_and_minus_zero_and_one_and_its_float_differ() -> None:
    values = [0, 0.0, -0.0, 1, 1.0, True, False, "1", None]
    assert len({digest(Value("k", value)) for value in values}) == len(values)


def test_embeddings_are_compared_as_float32() -> None:
    exact = [math.pi, 0.1, 1e-40]
    narrowed = np.asarray(exact, dtype=np.float32)
    for same in (exact, tuple(exact), narrowed, narrowed.tolist(), narrowed.astype(np.float64)):
        assert digest(Vector("k", "t", {}, same)) == digest(Vector("k", "t", {}, exact))
    next_one = np.nextafter(narrowed, np.float32(10)).tolist()
    assert digest(Vector("k", "t", {}, next_one)) != digest(Vector("k", "t", {}, exact))


def test_integers_beyond_64_bits_cannot_be_brought_to_the_canonical_form() -> None:
    with pytest.raises(TypeError):
        digest(Value("k", 2**64))


@pytest.mark.parametrize("record", BASE.values(), ids=lambda record: type(record).__name__)
def test_what_a_projection_states_has_its_canonical_form(record: Record) -> None:
    assert stated(record) == canonical(record)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (Vector("k", None), "Vector.text is None, no text"),
        (Node("k", None, "n"), "Node.kind is None"),
        (Node("k", "Kind", 5), "Node.name is 5"),
        (Node("k", "Kind", "n", {}, [Edge(None, "t")]), "Edge.kind is None"),
        (Node("k", "Kind", "n", {}, [Edge("E", "t"), Edge("E", None)]), "Edge.target is None"),
        (Node("k", "Kind", "n", {}, [Edge("E", "t"), Edge("E", "t", {"w": 1})]), "same kind and target"),
        (Node("k", "Kind", "n", {}, (Edge("E", target) for target in "tu")), "generator"),
        (Document("k", None, "t", "t"), "Document.kind is None"),
        (Document("k", "kind", None, "t"), "Document.title is None"),
        (Document("k", "kind", "t", ["t"]), r"Document.text is \['t'\]"),
        (Document("k", "kind", "t", "t", None), "NoneType"),
        (None, "NoneType is no record"),
    ],
)
def test_what_stores_would_fail_at_is_refused_where_it_is_stated(record: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        stated(record)


def test_by_key_keeps_the_last_record_of_a_key() -> None:
    records = [Value("a", 1), Value("b", 2), Value("a", 3)]
    assert by_key(records) == {"a": Value("a", 3), "b": Value("b", 2)}


@pytest.mark.parametrize("thing", [*BASE.values(), Change("k", "s", 1, None), Stored("k", "s", 1, b""), Edge("E", "t")])
def test_records_cannot_be_changed(thing: object) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, dataclasses.fields(thing)[0].name, "other")
