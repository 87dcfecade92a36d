"""Schema files: what is accepted, and that every refusal names the file and says what to do, on one line."""

import json
from pathlib import Path

import pytest

import schemas
from outbox.codec import Registry
from outbox.errors import SchemaError


def record(*fields: dict, name: str = "Placed", **more: object) -> dict:
    return {"type": "record", "name": name, "namespace": "shop", "fields": list(fields), **more}


def write(folder: Path, name: str, schema: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    return path


def refusal(*folders: Path) -> str:
    with pytest.raises(SchemaError) as caught:
        Registry.load(*folders)
    text = str(caught.value)
    assert "\n" not in text
    return text


PLACED = record({"name": "total", "type": "long"})


def test_every_built_in_schema_loads_and_its_id_never_changes():
    ids = {(v.type, v.version): v.fingerprint for v in Registry.load().check()}
    # The log holds these ids for good: a difference here means that old events can no longer be read.
    assert ids == {
        ("entity.deleted", 1): "b5cadf00dfd8ced9",
        ("entity.linked", 1): "08a52ca147360183",
        ("entity.patched", 1): "869049134becdd03",
        ("entity.unlinked", 1): "e342f234c65d9b41",
        ("entity.upserted", 1): "c61e62e7d7a88e84",
        ("row.deleted", 1): "308722d262a58942",
        ("row.inserted", 1): "786b9882517e8c3a",
        ("row.updated", 1): "0ddeeff6e3911bcb",
        ("table.described", 1): "1ac8f15b12da27de",
    }


def test_every_file_of_the_built_in_folder_is_listed():
    listed = {v.path for v in Registry.load().check()}
    assert listed == {p.resolve() for p in schemas.FOLDER.glob("*.avsc")}


def test_types_of_further_folders_join_the_built_in_ones(tmp_path):
    write(tmp_path, "order.placed.v1.avsc", PLACED)
    types = {v.type for v in Registry.load(tmp_path).check()}
    assert {"order.placed", "entity.upserted"} <= types


def test_the_same_folder_given_twice_counts_once(tmp_path):
    write(tmp_path, "order.placed.v1.avsc", PLACED)
    assert len(Registry.load(tmp_path, tmp_path).check()) == len(Registry.load(tmp_path).check())


def test_one_type_in_two_folders_is_refused(tmp_path):
    write(tmp_path / "a", "order.placed.v1.avsc", PLACED)
    write(tmp_path / "b", "order.placed.v1.avsc", PLACED)
    text = refusal(tmp_path / "a", tmp_path / "b")
    assert str(tmp_path / "b" / "order.placed.v1.avsc") in text and str(tmp_path / "a") in text


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "placed.avsc",
        "order.placed.v0.avsc",
        "order.placed.v01.avsc",
        "1order.v1.avsc",
        "order..x.v1.avsc",
        "ordér.v1.avsc",
    ],
)
def test_a_file_with_another_kind_of_name_is_refused(tmp_path, name):
    path = write(tmp_path, name, PLACED)
    assert str(path) in refusal(tmp_path)


def test_a_gap_in_the_versions_is_refused(tmp_path):
    write(tmp_path, "order.placed.v1.avsc", PLACED)
    path = write(tmp_path, "order.placed.v3.avsc", PLACED)
    assert str(path) in refusal(tmp_path) and "no version 2" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('"string"', '"type": "record"'),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, '"type": "record"'),
        ({"type": "record", "fields": []}, "name"),
        ({"type": "record", "name": "A"}, 'must have its "fields"'),
        ({"type": "record", "name": "A", "fields": {"a": "string"}}, 'must have its "fields"'),
        (record({"name": "a"}), "missing 'type'"),
        (record({"name": "a", "type": "strnig"}), "unknown type 'shop.strnig'"),
        (record({"name": "a", "type": {"type": "array"}}), "'items'"),
        (record({"name": "a", "type": "long", "default": "x"}), "efault"),
        (record({"name": "a", "type": "string", "default": "\0"}), "NUL"),
        (record({"name": "a", "type": "int", "default": 2**31}), "range of int"),
        (record({"name": "a", "type": {"type": "array", "items": "null"}}), "take no bytes"),
        (record({"name": "a", "type": {"type": "array", "items": record(name="Empty")}}), "take no bytes"),
        (record({"name": "b", "type": "Placed"}, {"name": "a", "type": {"type": "array", "items": "Placed"}}), ""),
    ],
)
def test_a_malformed_schema_is_refused_with_its_file(tmp_path, schema, why):
    path = write(tmp_path, "order.placed.v1.avsc", schema)
    text = refusal(tmp_path)
    assert str(path) in text and why in text


def test_a_schema_nested_deeper_than_64_levels_is_refused(tmp_path):
    deep: object = "string"
    for _ in range(64):
        deep = {"type": "array", "items": deep}
    write(tmp_path, "order.placed.v1.avsc", record({"name": "a", "type": deep}))
    assert "64 levels" in refusal(tmp_path)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path):
    (tmp_path / "order.placed.v1.avsc").write_bytes(b'{"a": "\xff"}')
    assert "not JSON" in refusal(tmp_path)
