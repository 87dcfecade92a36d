"""Encoding and decoding: fixed bytes, what is refused and where, and what corrupt bytes do."""

import enum
import io
import json
import math
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import avro.io
import avro.schema
import pytest

import schemas
from outbox.codec import Registry, default_registry
from outbox.errors import InvalidEvent, UnknownEventType

UPSERTED = {
    "kind": "product",
    "name": "Trail shoe",
    "text": "Light – for wet ground",
    "properties": {"price": 12.5, "stock": 7, "active": True, "note": None, "tags": ["a", 1, 2.5, False, None]},
    "links": [{"kind": "made_by", "target": "company-42", "properties": {"since": -1999}}],
    "parts": [{"key": "p1", "kind": "size", "name": "42", "text": "", "properties": {}, "links": []}],
}


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


def one_field(tmp_path, type_, **more):
    """A registry with the event type ``t`` whose record has the one field ``a``."""
    schema = {"type": "record", "name": "T", "fields": [{"name": "a", "type": type_, **more}]}
    (tmp_path / "t.v1.avsc").write_text(json.dumps(schema))
    return Registry.load(tmp_path)


def refused(registry, type_, data):
    with pytest.raises(InvalidEvent) as caught:
        registry.encode(type_, data)
    assert "\n" not in str(caught.value)
    return caught.value


# --- the form of the bytes


def test_an_event_is_these_very_bytes_on_every_machine(registry):
    assert registry.encode("entity.deleted", {"reason": "sold"}).hex() == "c301d9ced8df00dfcab508736f6c64"


def test_the_schema_id_is_the_one_the_avro_project_computes(registry):
    for version in registry.check():
        theirs = avro.schema.parse(version.path.read_text()).fingerprint("CRC-64-AVRO")
        assert version.header == b"\xc3\x01" + theirs


def test_the_body_is_read_by_the_avro_projects_own_reader(registry):
    schema = avro.schema.parse((schemas.FOLDER / "entity.upserted.v1.avsc").read_text())
    body = io.BytesIO(registry.encode("entity.upserted", UPSERTED)[10:])
    assert avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(body)) == UPSERTED


def test_what_was_encoded_decodes_equal_with_the_same_types(registry):
    back = registry.decode("entity.upserted", registry.encode("entity.upserted", UPSERTED))
    assert back == UPSERTED
    assert [type(v) for v in back["properties"].values()] == [type(v) for v in UPSERTED["properties"].values()]


def test_missing_fields_with_a_default_are_filled(registry):
    data = registry.encode("entity.upserted", {"kind": "k", "name": "n"})
    assert registry.decode("entity.upserted", data) == {
        "kind": "k",
        "name": "n",
        "text": "",
        "properties": {},
        "links": [],
        "parts": [],
    }


def test_any_mapping_and_tuples_are_taken(registry):
    data = types.MappingProxyType({**UPSERTED, "links": tuple(UPSERTED["links"])})
    assert registry.encode("entity.upserted", data) == registry.encode("entity.upserted", UPSERTED)


def test_the_order_of_the_fields_given_does_not_matter(registry):
    shuffled = dict(reversed(UPSERTED.items()))
    assert registry.encode("entity.upserted", shuffled) == registry.encode("entity.upserted", UPSERTED)


def test_the_registry_of_the_built_in_schemas_is_loaded_once():
    assert default_registry() is default_registry()


# --- refusals


def test_an_unknown_type_is_refused_with_the_nearest_names(registry):
    for call in (lambda: registry.encode("entity.upsert", {}), lambda: registry.decode("entity.upsert", b"")):
        with pytest.raises(UnknownEventType, match=r"did you mean entity\.upserted"):
            call()


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"name": 1}, "name", "expected string, got int"),
        ({"name": b"x"}, "name", "expected string, got bytes"),
        ({"name": None}, "name", "expected string, got NoneType"),
        ({"text": "a\0b"}, "text", "NUL"),
        ({"text": "a\ud800b"}, "text", "U+D800"),
        ({"colour": "red"}, "colour", "is not a field of"),
        ({7: "red"}, "[7]", "is not a field of"),
        ({"properties": {"price": math.nan}}, "properties.price", "nan"),
        ({"properties": {"price": -math.inf}}, "properties.price", "-inf"),
        ({"properties": {"stock": 2**63}}, "properties.stock", "range of long"),
        ({"properties": {"x": Decimal(1)}}, "properties.x", "got Decimal"),
        ({"properties": {"x": {"y": 1}}}, "properties.x", "got dict"),
        ({"properties": {"x": [["deep"]]}}, "properties.x[0]", "got list"),
        ({"properties": {"x": ["ok", "\0"]}}, "properties.x[1]", "NUL"),
        ({"properties": {"a\0b": 1}}, "properties['a\\x00b']", "NUL"),
        ({"properties": {"\udfff": 1}}, "properties['\\udfff']", "U+DFFF"),
        ({"properties": {"two words": "\0"}}, "properties['two words']", "NUL"),
        ({"properties": {1: "x"}}, "properties[1]", "expected string, got int"),
        ({"properties": [("a", 1)]}, "properties", "expected map"),
        ({"properties": "abc"}, "properties", "expected map"),
        ({"links": "abc"}, "links", "expected array"),
        ({"links": {"a": 1}}, "links", "expected array"),
        ({"links": [{"kind": "k"}]}, "links[0].target", "missing"),
        ({"links": [{"kind": "k", "target": "t", "to": "u"}]}, "links[0].to", "is not a field of"),
        ({"parts": [UPSERTED["parts"][0]] * 3 + [{"key": "p", "kind": "k", "name": 3}]}, "parts[3].name", "got int"),
        ({"parts": [{**UPSERTED["parts"][0], "links": [3]}]}, "parts[0].links[0]", "expected a mapping"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(registry, change, field, why):
    error = refused(registry, "entity.upserted", {**UPSERTED, **change})
    assert (error.field, why in str(error)) == (field, True), str(error)


def test_a_missing_field_without_a_default_is_refused(registry):
    error = refused(registry, "entity.upserted", {"kind": "k"})
    assert error.field == "name" and "missing" in str(error)


@pytest.mark.parametrize("data", [None, 3, "text", b"bytes", [("reason", "x")]])
def test_data_that_are_no_mapping_are_refused(registry, data):
    assert refused(registry, "entity.deleted", data).field is None


def test_a_long_key_is_shortened_in_the_path(registry):
    error = refused(registry, "entity.upserted", {**UPSERTED, "properties": {"k" * 100_000: "\0"}})
    assert len(str(error)) < 300


@pytest.mark.parametrize("key", [10**5000, object(), ("a", "b")], ids=["huge", "object", "tuple"])
def test_a_key_that_has_no_short_text_is_named_by_its_type(registry, key):
    assert refused(registry, "entity.upserted", {**UPSERTED, key: 1}).field == f"[{type(key).__name__}]"


def test_an_event_over_the_size_limit_is_refused_and_one_at_the_limit_is_not():
    at_limit = {"reason": "x" * 100}
    size = len(Registry.load().encode("entity.deleted", at_limit))
    assert Registry.load(size_max=size).encode("entity.deleted", at_limit)
    assert "larger than 111 bytes" in str(refused(Registry.load(size_max=size - 1), "entity.deleted", at_limit))


def test_the_default_limit_is_16_mib(registry):
    assert registry.encode("entity.deleted", {"reason": "x" * (16 * 2**20 - 20)})
    assert "16,777,216" in str(refused(registry, "entity.deleted", {"reason": "x" * 16 * 2**20}))


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("long", True),
        ("long", 1.0),
        ("long", "1"),
        ("long", 2**63),
        ("long", -(2**63) - 1),
        ("int", 2**31),
        ("int", False),
        ("double", True),
        ("double", "1"),
        ("double", 2**53 + 1),
        ("double", 10**400),
        ("float", 1e39),
        ("float", math.inf),
        ("boolean", 1),
        ("boolean", "true"),
        ("null", 0),
        ("bytes", "x"),
        (["null", "long"], True),
        (["null", "long"], "x"),
        (["null", "double"], "1"),
        (["null", "long", "double"], 2**63),
        (["null", "string"], ("string", "x")),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "C"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, 1),
        ({"type": "fixed", "name": "F", "size": 2}, b"abc"),
        ({"type": "fixed", "name": "F", "size": 2}, "ab"),
        ({"type": "array", "items": "string"}, "abc"),
        ({"type": "array", "items": "string"}, {"a"}),
        ({"type": "long", "logicalType": "timestamp-millis"}, 5),
        ({"type": "long", "logicalType": "timestamp-millis"}, datetime(2024, 1, 1)),
        ({"type": "long", "logicalType": "timestamp-millis"}, datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        ({"type": "int", "logicalType": "date"}, "2024-01-01"),
        ({"type": "string", "logicalType": "uuid"}, "not one"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, Decimal("1.234")),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, Decimal("NaN")),
    ],
)
def test_nothing_is_converted_to_fit(tmp_path, type_, value):
    assert refused(one_field(tmp_path, type_), "t", {"a": value}).field == "a"


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int", -(2**31)),
        ("long", 2**63 - 1),
        ("long", -(2**63)),
        ("long", 8191),
        ("long", 8192),
        ("long", Size.SMALL),
        ("double", 3),
        ("double", 2**60),
        ("double", -0.0),
        ("float", 0.5),
        ("bytes", b"\0\xff"),
        ("string", "x" * 9000),
        ("string", Colour.RED),
        (["null", "string"], Colour.RED),
        (["double", "long"], 2**53 + 1),
        (["null", "double"], 4),
        (["float", "double"], 0.1),
        (["null", {"type": "enum", "name": "E", "symbols": ["A"]}, "string"], "B"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B"),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab"),
        ({"type": "long", "logicalType": "timestamp-millis"}, datetime(2024, 1, 1, 2, 3, 4, 5000, tzinfo=UTC)),
        (["null", {"type": "long", "logicalType": "timestamp-micros"}], datetime(2024, 1, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (
            {"type": "long", "logicalType": "timestamp-micros"},
            datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2))),
        ),
        ({"type": "int", "logicalType": "date"}, date(2024, 2, 29)),
        (["null", {"type": "string", "logicalType": "uuid"}], uuid.UUID(int=7)),
        ({"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, Decimal("-12.50")),
        ({"type": "string", "logicalType": "postcode"}, "an unknown logical type is ignored"),
    ],
)
def test_exact_values_come_back_equal(tmp_path, type_, value):
    registry = one_field(tmp_path, type_)
    assert registry.decode("t", registry.encode("t", {"a": value})) == {"a": value}


def test_a_union_of_records_takes_the_first_that_fits(tmp_path):
    def rec(name, *fields):
        return {"type": "record", "name": name, "fields": [{"name": f, "type": "string"} for f in fields]}

    registry = one_field(tmp_path, ["null", rec("P", "x"), rec("Q", "x", "y"), {"type": "map", "values": "long"}])
    for value in ({"x": "1"}, {"x": "1", "y": "2"}, {"z": 3}, {}):
        assert registry.decode("t", registry.encode("t", {"a": value})) == {"a": value}
    assert refused(registry, "t", {"a": {"x": "1", "y": "\0"}}).field == "a.y"


@pytest.mark.parametrize(
    ("type_", "default", "value"),
    [
        ("bytes", "\u00ff\u0000", b"\xff\0"),
        ({"type": "fixed", "name": "F", "size": 2}, "ab", b"ab"),
        (["null", "string"], None, None),
        (["string", "null"], "x", "x"),
        ({"type": "map", "values": "long"}, {"k": 1}, {"k": 1}),
        ({"type": "array", "items": "bytes"}, ["\u0001"], [b"\x01"]),
        ({"type": "record", "name": "R", "fields": [{"name": "b", "type": "long", "default": 5}]}, {}, {"b": 5}),
        ({"type": "int", "logicalType": "date"}, 1, date(1970, 1, 2)),
    ],
)
def test_defaults_of_every_kind_are_filled(tmp_path, type_, default, value):
    registry = one_field(tmp_path, type_, default=default)
    assert registry.decode("t", registry.encode("t", {})) == {"a": value}


# --- records that contain themselves


@pytest.fixture
def trees(tmp_path):
    return one_field(tmp_path, {"type": "array", "items": "T"}, default=[])


def tree(levels):
    data = {}
    for _ in range(levels - 1):
        data = {"a": [data]}
    return data


def test_a_tree_of_64_levels_is_taken_and_a_deeper_one_refused(trees):
    # A level of this tree is two of the limit's: a record and an array; the innermost is a record and an empty array.
    data = trees.encode("t", tree(32))
    assert trees.decode("t", data)["a"][0]["a"]
    error = refused(trees, "t", tree(33))
    assert "deeper than 64 levels" in str(error) and error.field == "a" + "[0].a" * 31 + "[0]"


def test_data_that_contain_themselves_are_refused(trees):
    loop = {"a": []}
    loop["a"].append(loop)
    assert "deeper than 64" in str(refused(trees, "t", loop))


def test_shared_data_that_would_unfold_without_end_are_refused(trees, tmp_path):
    shared = {"a": []}
    for _ in range(31):
        shared = {"a": [shared, shared]}
    assert "larger than" in str(refused(Registry.load(tmp_path, size_max=100_000), "t", shared))


def test_bytes_nested_without_end_do_not_bring_the_process_down(trees):
    header = trees.encode("t", {})[:10]
    with pytest.raises(InvalidEvent, match="deeper than 64"):
        trees.decode("t", header + b"\x02" * 100_000)


# --- bytes that are not what they should be


def test_an_unknown_schema_id_says_to_deploy_the_newer_schema(registry):
    with pytest.raises(UnknownEventType, match=r"0807060504030201.*deploy"):
        registry.decode("entity.deleted", b"\xc3\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00")


@pytest.mark.parametrize("data", [b"", b"\xc3\x01", b"\xc3\x02" + bytes(20), b'{"reason": "json"}'])
def test_bytes_in_another_form_are_refused(registry, data):
    with pytest.raises(InvalidEvent, match="single-object"):
        registry.decode("entity.deleted", data)


def test_every_truncation_is_refused(registry):
    data = registry.encode("entity.upserted", UPSERTED)
    for size in range(len(data)):
        with pytest.raises(InvalidEvent):
            registry.decode("entity.upserted", data[:size])


def test_bytes_left_over_are_refused(registry):
    with pytest.raises(InvalidEvent, match="1 left over"):
        registry.decode("entity.deleted", registry.encode("entity.deleted", {}) + b"\0")


# --- threads


def test_threads_share_one_registry(registry):
    def work(number):
        for i in range(200):
            data = {**UPSERTED, "name": f"{number}-{i}"}
            assert registry.decode("entity.upserted", registry.encode("entity.upserted", data)) == data

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_type_of_ones_own_that_is_unknown_says_where_schemas_come_from():
    """Their folder may well be in the settings: an append without a registry looks at the built-in ones alone."""
    with pytest.raises(UnknownEventType, match=r"'invoice\.sent'.*schemas of the settings.*append.*given a registry"):
        default_registry().encode("invoice.sent", {})
