"""What the settings say of projectors and stores, before anything is opened."""

from __future__ import annotations

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
