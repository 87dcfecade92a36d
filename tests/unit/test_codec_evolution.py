"""Evolution: which new versions are let in, and that old bytes read as the newest version."""

import json

import pytest

from outbox.codec import Registry
from outbox.errors import InvalidEvent, SchemaError, UnknownEventType

LONG_A = {"name": "a", "type": "long"}
TEXT_B = {"name": "b", "type": "string"}
TEXT_B_DEFAULT = {**TEXT_B, "default": "none"}


class Folder:
    """A folder of schema versions of the event type ``t``."""

    def __init__(self, path):
        self.path = path

    def version(self, number, *fields, name="T", **more):
        schema = {"type": "record", "name": name, "fields": list(fields), **more}
        (self.path / f"t.v{number}.avsc").write_text(json.dumps(schema))
        return self.load

    def load(self):
        return Registry.load(self.path)

    def refused(self):
        with pytest.raises(SchemaError) as caught:
            self.load()
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_new_field_with_a_default_is_filled_in_old_events(folder):
    old = folder.version(1, LONG_A)().encode("t", {"a": 1})
    assert folder.version(2, LONG_A, TEXT_B_DEFAULT)().decode("t", old) == {"a": 1, "b": "none"}


def test_a_new_field_without_a_default_is_refused(folder):
    folder.version(1, LONG_A)
    folder.version(2, LONG_A, TEXT_B)
    text = folder.refused()
    assert "t.v2.avsc" in text and "field b" in text and "default" in text


def test_a_removed_field_is_left_out_of_old_events(folder):
    old = folder.version(1, LONG_A, TEXT_B)().encode("t", {"a": 1, "b": "x"})
    assert folder.version(2, LONG_A)().decode("t", old) == {"a": 1}


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("int", "long", 7),
        ("int", "double", 7),
        ("long", "double", 7),
        ("long", ["null", "long"], 7),
        ("string", ["null", "string"], "x"),
    ],
)
def test_a_promoted_type_reads_old_events(folder, old, new, value):
    data = folder.version(1, {"name": "a", "type": old})().encode("t", {"a": value})
    assert folder.version(2, {"name": "a", "type": new})().decode("t", data) == {"a": value}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("long", "int"),
        ("string", "long"),
        (["null", "string"], "string"),
        (["null", "long", "string"], ["null", "string"]),
        ({"type": "array", "items": "string"}, {"type": "array", "items": "long"}),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, {"type": "enum", "name": "E", "symbols": ["A"]}),
        ({"type": "fixed", "name": "F", "size": 2}, {"type": "fixed", "name": "F", "size": 3}),
    ],
)
def test_a_type_that_cannot_hold_the_old_values_is_refused(folder, old, new):
    folder.version(1, {"name": "a", "type": old})
    folder.version(2, {"name": "a", "type": new})
    text = folder.refused()
    assert "t.v2.avsc" in text and "field a" in text and "cannot read what t.v1.avsc wrote" in text


def test_a_rename_without_an_alias_is_refused(folder):
    folder.version(1, LONG_A)
    folder.version(2, {"name": "amount", "type": "long"})
    assert "field amount" in folder.refused() and "alias" in folder.refused()


def test_a_rename_with_an_alias_reads_old_events(folder):
    old = folder.version(1, LONG_A)().encode("t", {"a": 1})
    assert folder.version(2, {"name": "amount", "type": "long", "aliases": ["a"]})().decode("t", old) == {"amount": 1}


def test_the_record_keeps_its_name(folder):
    folder.version(1, LONG_A)
    folder.version(2, LONG_A, TEXT_B_DEFAULT, name="U", aliases=["T"])
    assert "keep the name" in folder.refused()


def test_a_version_whose_schema_id_is_not_its_own_is_refused(folder):
    folder.version(1, LONG_A)
    folder.version(2, {**LONG_A, "default": 3})
    assert "t.v2.avsc" in folder.refused() and "schema id" in folder.refused()


def test_every_older_version_must_be_readable_not_only_the_last(folder):
    folder.version(1, LONG_A)
    folder.version(2, TEXT_B_DEFAULT)
    folder.version(3, {"name": "a", "type": "string", "default": ""})
    assert "t.v3.avsc" in folder.refused() and "t.v1.avsc" in folder.refused()


def test_a_nested_field_is_named_in_the_refusal(folder):
    def items(*fields):
        return {
            "name": "items",
            "type": {"type": "array", "items": {"type": "record", "name": "I", "fields": list(fields)}},
        }

    folder.version(1, items(LONG_A))
    folder.version(2, items(LONG_A, TEXT_B))
    assert "items[].b" in folder.refused()


def test_version_1_is_read_by_versions_2_and_3(folder):
    first = folder.version(1, {"name": "a", "type": "int"})().encode("t", {"a": 1})
    registry = folder.version(2, LONG_A, TEXT_B_DEFAULT)()
    second = registry.encode("t", {"a": 2, "b": "x"})
    assert registry.decode("t", first) == {"a": 1, "b": "none"}
    registry = folder.version(
        3, {"name": "amount", "type": "long", "aliases": ["a"]}, {"name": "c", "type": "boolean", "default": True}
    )()
    assert registry.decode("t", first) == {"amount": 1, "c": True}
    assert registry.decode("t", second) == {"amount": 2, "c": True}


def test_bytes_of_a_newer_version_name_the_missing_schema(folder, tmp_path):
    old_registry = folder.version(1, LONG_A)()
    newer = folder.version(2, LONG_A, TEXT_B_DEFAULT)().encode("t", {"a": 1})
    with pytest.raises(UnknownEventType, match="newer producer"):
        old_registry.decode("t", newer)


# --- upcasters


@pytest.fixture
def names(folder):
    """Version 1 has ``name``; 2 splits it in two; 3 adds ``greeting``; 4 adds ``length``."""
    first = {"name": "first", "type": "string", "default": ""}
    last = {"name": "last", "type": "string", "default": ""}
    greeting = {"name": "greeting", "type": "string", "default": "Dear"}
    data = {1: folder.version(1, {"name": "name", "type": "string"})().encode("t", {"name": "Ada Lovelace"})}
    data[2] = folder.version(2, first, last)().encode("t", {"first": "Alan", "last": "Turing"})
    folder.version(3, first, last, greeting)
    folder.version(4, first, last, greeting, {"name": "length", "type": "long", "default": 0})
    return folder.load(), data


def split(data):
    first, _, last = data["name"].partition(" ")
    return {"first": first, "last": last}


def test_an_upcaster_takes_the_place_of_one_step_and_avro_does_the_others(names):
    registry, data = names
    registry.upcaster("t", 1)(split)
    assert registry.decode("t", data[1]) == {"first": "Ada", "last": "Lovelace", "greeting": "Dear", "length": 0}
    assert registry.decode("t", data[2]) == {"first": "Alan", "last": "Turing", "greeting": "Dear", "length": 0}


def test_upcasters_form_a_chain_with_avro_steps_between(names):
    registry, data = names
    registry.upcaster("t", 1)(split)

    @registry.upcaster("t", 3)
    def measure(data):
        return {**data, "length": len(data["first"] + data["last"])}

    assert registry.decode("t", data[1]) == {"first": "Ada", "last": "Lovelace", "greeting": "Dear", "length": 11}
    assert registry.decode("t", data[2])["length"] == 10
    newest = {"first": "A", "last": "B", "greeting": "C", "length": 99}
    assert registry.decode("t", registry.encode("t", newest)) == newest


def test_two_upcasters_in_a_row_hand_over_with_defaults_filled(names):
    registry, data = names
    registry.upcaster("t", 1)(lambda data: {"last": data["name"]})
    seen = []
    registry.upcaster("t", 2)(lambda data: seen.append(dict(data)) or data)
    registry.decode("t", data[1])
    assert seen == [{"first": "", "last": "Ada Lovelace"}]


def test_an_upcasters_wrong_result_is_refused_with_its_field(names):
    registry, data = names
    registry.upcaster("t", 1)(lambda data: {"first": 3})
    with pytest.raises(InvalidEvent, match="upcaster to version 2") as caught:
        registry.decode("t", data[1])
    assert caught.value.field == "first"


def test_an_upcaster_that_fails_is_named(names):
    registry, data = names
    registry.upcaster("t", 1)(lambda data: data["nome"])
    with pytest.raises(InvalidEvent, match="upcaster from version 1 failed: KeyError"):
        registry.decode("t", data[1])


def test_an_upcaster_needs_a_step_of_its_own(names):
    registry, _ = names
    registry.upcaster("t", 1)(split)
    for step in (0, 1, 4):
        with pytest.raises(SchemaError):
            registry.upcaster("t", step)(split)
    with pytest.raises(UnknownEventType):
        registry.upcaster("nothing", 1)
