"""Text of PostgreSQL as values of events, without a database: arrays, states compared, derived schemas."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.capture.derived import avro
from outbox.capture.form import same
from outbox.capture.values import array_of

TEXTS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0")))


def literal(items):
    """An array as the manual says it is written (8.15.6): quoted, unless it is null."""
    quoted = ["NULL" if i is None else '"' + i.replace("\\", "\\\\").replace('"', '\\"') + '"' for i in items]
    return "{" + ",".join(quoted) + "}"


@given(st.lists(TEXTS, max_size=6))
def test_an_array_comes_back_as_it_was(items):
    assert array_of(None, ",")(literal(items)) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("{}", []),
        ("{1,NULL,-3}", [1, None, -3]),
        ("{{1,2},{3,4}}", "{{1,2},{3,4}}"),
        ("[0:1]={1,2}", "[0:1]={1,2}"),
    ],
)
def test_an_array_of_more_dimensions_or_other_bounds_stays_text(text, items):
    assert array_of(int, ",")(text) == items


def test_boxes_are_parted_by_a_semicolon():
    assert array_of(None, ";")("{(1,1),(0,0);(2,2),(0,0)}") == ["(1,1),(0,0)", "(2,2),(0,0)"]


def test_null_quoted_is_a_text():
    assert array_of(None, ",")('{"NULL",NULL}') == ["NULL", None]


def test_states_are_the_same_only_if_every_value_is():
    assert same({"a": 1, "b": None}, {"a": 1})
    assert same(None, None)
    assert not same(None, {})
    for other in (1.0, True, "1", [1]):
        assert not same({"a": 1}, {"a": other})
    assert not same({"a": 0.0}, {"a": -0.0})
    assert math.copysign(1, -0.0) == -1


def test_a_derived_schema_is_one_avro_takes():
    from fastavro import parse_schema

    columns = [("id", "bigint"), ("größe", "text"), ("tags", "text[]"), ("_x6964", "float8")]
    types = ["long", "string", [{"type": "array", "items": ["null", "string"]}, "string"], ["double", "string"]]
    schema = json.loads(avro("2024.my_table", columns, types))
    assert parse_schema(schema)["name"] == "outbox.captured._2024.my_table"
    assert [f.get("column", f["name"]) for f in schema["fields"]] == ["id", "größe", "tags", "_x6964"]
