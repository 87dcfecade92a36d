"""What the settings say of projectors and stores, before anything is opened."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import SettingsError
from outbox.settings import Projecting, Settings
from projectors.layout import Layout


def layout(*names: str, store: str = "elasticsearch") -> Layout:
    projecting = {name: Projecting(projection="documents", store=store) for name in names}
    return Layout(Settings(projectors=projecting), "")


@pytest.mark.parametrize("other", ["docs-g1", "docs-g12", "docs-g1-write"])
def test_a_projector_named_like_an_index_of_another_is_refused(other: str) -> None:
    """Elasticsearch refused to make the index, or the alias, for as long as the two were there."""
    with pytest.raises(SettingsError, match=f"projectors.{other}: 'docs'"):
        layout("docs", other).of("docs")


def test_names_that_only_look_alike_stand_beside_each_other() -> None:
    assert set(layout("docs", "docs-gone", "other-g1").projecting) == {"docs", "docs-gone", "other-g1"}
    assert set(layout("docs", "docs-g1", store="tantivy").projecting) == {"docs", "docs-g1"}


class Customers:
    categories: Any = ("customer",)

    def fold(self, state: Any, event: Any) -> Any:
        return event.data

    def records(self, stream: str, state: Any) -> Any:
        return ()


def following(categories: Any) -> Any:
    return type("Of", (Customers,), {"categories": categories})()


def given(projection: Any) -> Layout:
    projecting = {"customers": Projecting(projection="customers", store="tantivy")}
    return Layout(Settings(projectors=projecting), "", {"customers": projection})


@pytest.mark.parametrize(
    ("projection", "said"),
    [
        (Customers, r"is a class: give an instance of it, Customers\(\)"),
        (object(), "no fold, records, categories"),
        (following("customer"), r"categories is 'customer': give a tuple"),
        (following(c for c in ["customer"]), "categories is <generator.*give a tuple"),
        (following(None), "categories is None"),
        (following(()), "categories is empty"),
        (following([]), "categories is empty"),
        (following(("customer-*",)), r"category 'customer-\*' is none"),
        (following(("customer-42",)), "category 'customer-42' is none"),
        (following(["customer", ""]), "category '' is none"),
        (following([7]), "category 7 is none"),
    ],
)
def test_a_projection_that_is_none_or_would_follow_nothing_is_refused(projection: Any, said: str) -> None:
    """It ran: every stream was parked, or none was ever seen, and waiting for it ended at once."""
    with pytest.raises(SettingsError, match=f"the projection 'customers'.*{said}"):
        given(projection).projection("customers")


@pytest.mark.parametrize("categories", [("customer",), ["a", "sales.orders"], {"a_b", "C"}, frozenset({"a"})])
def test_categories_may_be_any_collection(categories: Any) -> None:
    assert given(following(categories)).projection("customers").categories == categories


@pytest.mark.parametrize(
    ("categories", "said"), [(("entity-*",), r"the category 'entity-\*' is none"), ((), "categories is empty")]
)
def test_a_built_in_projections_categories_are_checked_too(categories: tuple[str, ...], said: str) -> None:
    projecting = {"docs": Projecting(projection="documents", store="tantivy", categories=categories)}
    with pytest.raises(SettingsError, match=rf"projectors\.docs: {said}"):
        Layout(Settings(projectors=projecting), "").projection("docs")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
        ("class P(:", "cannot be imported: SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'.*PYTHONPATH"),
        ("Q = 1", "no attribute 'P'"),
        ("P = 1", "it has no fold, records, categories"),
        ("class P:\n    def __init__(self, x): pass", "cannot be made without arguments"),
        (
            "class P:\n    def fold(self, s, e): pass\n    def records(self, s, e): pass",
            "is no projection: it has no categories",
        ),
    ],
)
def test_a_projection_that_cannot_be_imported_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    module = f"shop_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    projecting = {"customers": Projecting(projection=f"{module}:P", store="tantivy")}
    with pytest.raises(SettingsError, match=rf"projectors\.customers\.projection.*{said}"):
        Layout(Settings(projectors=projecting), "").projection("customers")
