"""The built-in entities: what the five events make of one, and its records in the three projections."""

from __future__ import annotations

from typing import Any

import pytest

from outbox.codec import Registry
from projectors.entity import (
    VECTOR_TEXT_LENGTH_MAX,
    Entity,
    EntityDocuments,
    EntityGraph,
    EntityVectors,
    fold,
)
from projectors.record import Document, Edge, Node, Vector, canonical
from tests.unit.read_side import event

REGISTRY = Registry.load()
STREAM = "entity-ada"
CATEGORIES = ("entity",)


def folded(*events: tuple[str, dict[str, Any]], state: Entity | None = None) -> Entity | None:
    """The entity after events whose data went through Avro, as it does on its way."""
    for version, (type_, data) in enumerate(events, 1):
        read = REGISTRY.decode(type_, REGISTRY.encode(type_, data))
        state = fold(state, event(STREAM, version, read, type_))
    return state


def upserted(**data: Any) -> tuple[str, dict[str, Any]]:
    return "entity.upserted", {"kind": "person", "name": "Ada", **data}


def linked(target: str, kind: str = "knows", **properties: Any) -> tuple[str, dict[str, Any]]:
    return "entity.linked", {"kind": kind, "target": target, "properties": properties}


def unlinked(target: str, kind: str = "knows") -> tuple[str, dict[str, Any]]:
    return "entity.unlinked", {"kind": kind, "target": target}


def patched(**data: Any) -> tuple[str, dict[str, Any]]:
    return "entity.patched", data


DELETED = ("entity.deleted", {})
PARTS = [{"key": "f", "kind": "function", "name": "run"}, {"key": "g", "kind": "function", "name": "go"}]


def keys(projection: Any, entity: Entity | None) -> list[str]:
    return [r.key for r in projection.records(STREAM, entity)]


# ------------------------------------------------------------------------- fold


def test_an_upsert_is_the_whole_entity() -> None:
    entity = folded(upserted(text="She wrote.", properties={"born": 1815}, parts=PARTS))
    assert (entity.key, entity.kind, entity.name, entity.text) == (STREAM, "person", "Ada", "She wrote.")
    assert entity.properties == {"born": 1815}
    assert [(p.key, p.name) for p in entity.parts] == [(f"{STREAM}#f", "run"), (f"{STREAM}#g", "go")]


def test_an_upsert_replaces_all_of_the_one_before() -> None:
    entity = folded(upserted(text="old", properties={"a": 1}, parts=PARTS), linked("entity-b"), upserted(name="Eve"))
    assert entity == Entity(STREAM, "person", "Eve")


def test_parts_that_an_upsert_leaves_out_are_gone() -> None:
    entity = folded(upserted(parts=PARTS), upserted(parts=PARTS[1:]))
    assert keys(EntityGraph(CATEGORIES), entity) == [STREAM, f"{STREAM}#g"]


def test_a_patch_changes_what_it_names_and_nothing_else() -> None:
    before = upserted(text="old", properties={"a": 1, "b": 2, "c": 3}, parts=PARTS)
    entity = folded(before, patched(text="new", properties={"b": 20}, removed=["c"]))
    assert (entity.name, entity.text, entity.properties) == ("Ada", "new", {"a": 1, "b": 20})
    assert len(entity.parts) == 2


def test_a_patch_may_empty_a_text_but_null_leaves_it() -> None:
    assert folded(upserted(text="old"), patched(text="")).text == ""
    assert folded(upserted(text="old"), patched(text=None)).text == "old"


def test_a_patch_with_a_null_removes_the_property() -> None:
    assert folded(upserted(properties={"a": 1, "b": 2}), patched(properties={"a": None})).properties == {"b": 2}


def test_a_property_removed_and_set_in_one_patch_is_set() -> None:
    assert folded(upserted(properties={"a": 1}), patched(properties={"a": 2}, removed=["a"])).properties == {"a": 2}


def test_a_patch_before_any_upsert_makes_a_bare_entity() -> None:
    entity = folded(patched(properties={"a": 1}))
    assert (entity.key, entity.kind, entity.name, entity.properties) == (STREAM, "entity", "ada", {"a": 1})


def test_a_link_before_any_upsert_makes_a_bare_entity() -> None:
    assert [link.target for link in folded(linked("entity-b")).links] == ["entity-b"]


def test_a_bare_entity_of_a_stream_without_a_dash_has_the_streams_name() -> None:
    assert fold(
        None, event("solo", 1, {"name": None, "text": None, "properties": {}, "removed": []}, "entity.patched")
    ) == (Entity("solo", "solo", "solo"))


def test_nulls_are_left_out_everywhere() -> None:
    part = {"key": "f", "kind": "function", "name": "run", "properties": {"x": None, "y": 1}}
    link = {"kind": "knows", "target": "entity-b", "properties": {"since": None, "of": "school"}}
    entity = folded(upserted(properties={"a": None, "b": 0}, parts=[part], links=[link]), linked("entity-c", w=None))
    assert entity.properties == {"b": 0}
    assert entity.parts[0].properties == {"y": 1}
    assert [dict(link.properties) for link in entity.links] == [{"of": "school"}, {}]


def test_linking_again_replaces_the_links_properties() -> None:
    entity = folded(upserted(), linked("entity-b", w=1), linked("entity-c"), linked("entity-b", w=2))
    assert [(link.target, dict(link.properties)) for link in entity.links] == [("entity-c", {}), ("entity-b", {"w": 2})]


def test_links_of_two_kinds_to_one_target_are_two() -> None:
    entity = folded(upserted(), linked("entity-b"), linked("entity-b", "hates"), unlinked("entity-b"))
    assert [link.kind for link in entity.links] == ["hates"]


def test_unlinking_what_is_not_linked_changes_nothing() -> None:
    before = folded(upserted(), linked("entity-b"))
    assert folded(unlinked("entity-x"), state=before) == before
    assert folded(unlinked("entity-b")) is None


def test_a_deleted_entity_is_nothing_and_may_come_again() -> None:
    assert folded(upserted(parts=PARTS), linked("entity-b"), DELETED) is None
    assert folded(upserted(parts=PARTS), linked("entity-b"), DELETED, upserted()) == Entity(STREAM, "person", "Ada")


def test_events_of_other_types_leave_it_as_it_is() -> None:
    entity = folded(upserted())
    assert fold(entity, event(STREAM, 2, {}, "invoice.paid")) is entity


def test_fold_leaves_the_state_it_is_given_as_it_was() -> None:
    entity = folded(upserted(properties={"a": 1}, parts=PARTS), linked("entity-b", w=1))
    before = repr(entity)
    for one in (patched(properties={"a": 2}, removed=["a"]), linked("entity-b", w=2), unlinked("entity-b"), upserted()):
        folded(one, state=entity)
        assert repr(entity) == before


# --------------------------------------------------------------------- records


@pytest.mark.parametrize("projection", [EntityVectors, EntityGraph, EntityDocuments])
def test_a_deleted_entity_has_no_records(projection: Any) -> None:
    assert keys(projection(CATEGORIES), None) == []


@pytest.mark.parametrize("projection", [EntityVectors, EntityGraph, EntityDocuments])
def test_an_entity_and_each_of_its_parts_has_one_record_with_a_canonical_form(projection: Any) -> None:
    entity = folded(upserted(text="t", properties={"a": [1, 2], "b": 1.5, "c": True}, parts=PARTS), linked("entity-b"))
    records = list(projection(CATEGORIES).records(STREAM, entity))
    assert [r.key for r in records] == [STREAM, f"{STREAM}#f", f"{STREAM}#g"]
    assert all(canonical(r) for r in records)


def test_a_vector_is_of_name_and_text_within_bounds() -> None:
    first, part = EntityVectors(CATEGORIES).records(STREAM, folded(upserted(text="x" * 9_000, parts=PARTS[:1])))
    assert first.text == ("Ada\n" + "x" * 9_000)[:VECTOR_TEXT_LENGTH_MAX]
    assert part == Vector(f"{STREAM}#f", "run", {"kind": "function", "name": "run", "root": "Ada"})


def test_a_node_owns_its_links_as_edges() -> None:
    entity = folded(upserted(properties={"a": 1}), linked("entity-b", w=1), linked("entity-c", "hates"))
    (node,) = EntityGraph(CATEGORIES).records(STREAM, entity)
    edges = (Edge("knows", "entity-b", {"w": 1}), Edge("hates", "entity-c", {}))
    assert node == Node(STREAM, "person", "Ada", {"a": 1}, edges)


def test_a_link_said_twice_in_one_upsert_is_one_edge_the_last() -> None:
    links = [{"kind": "knows", "target": "entity-b", "properties": {"w": w}} for w in (1, 2)]
    (node,) = EntityGraph(CATEGORIES).records(STREAM, folded(upserted(links=links)))
    assert node.edges == (Edge("knows", "entity-b", {"w": 2}),)


def test_a_document_has_the_properties_and_the_roots_name() -> None:
    entity = folded(upserted(text="t", properties={"a": 1}, parts=PARTS[:1]))
    first, part = EntityDocuments(CATEGORIES).records(STREAM, entity)
    assert first == Document(STREAM, "person", "Ada", "t", {"a": 1, "root": "Ada"})
    assert part == Document(f"{STREAM}#f", "function", "run", "", {"root": "Ada"})
