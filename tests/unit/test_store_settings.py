"""A store's section with a key that it does not have is refused: its records would go where nobody meant them to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox.errors import SettingsError
from outbox.settings import load
from projectors.sinks import chroma, elasticsearch, ladybug, neo4j, postgres, tantivy
from projectors.wiring import open_read_side


@pytest.mark.parametrize(
    ("store", "settings", "wrong"),
    [
        (postgres, {"dsn": "postgresql://x/log", "dns": "postgresql://x/rows"}, "dns"),
        (tantivy, {"folder": "elsewhere"}, "folder"),
        (ladybug, {"buffer": 512}, "buffer"),
    ],
)
def test_a_wrong_key_of_a_stores_section_is_named(
    store: Any, settings: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    given = settings if store is postgres else {"path": str(tmp_path / "store"), **settings}
    with pytest.raises(SettingsError, match=f"no setting '{wrong}'; known are"), store.open_sink("p", given):
        raise AssertionError("it was opened")


@pytest.mark.parametrize("given", ["inf", "nan", "0", "-1", "86401"])
@pytest.mark.parametrize("store", [chroma, elasticsearch, neo4j, postgres])
def test_a_wait_that_would_never_end_or_never_begin_is_named(store: Any, given: str) -> None:
    where = {"dsn": "postgresql://x/rows"} if store is postgres else {"url": "http://127.0.0.1:1"}
    if store is neo4j:
        where = {"url": "bolt://127.0.0.1:1"}
    with pytest.raises(SettingsError, match="timeout_s"), store.open_sink("p", {**where, "timeout_s": given}):
        raise AssertionError("it was opened")


def test_a_section_of_a_store_that_there_is_none_of_is_named() -> None:
    settings = load(database={"dsn": "postgresql://x/log"}, stores={"posgres": {"dsn": "postgresql://x/rows"}})
    with (
        pytest.raises(SettingsError, match=r"stores\.posgres: there is no store 'posgres'; installed are"),
        open_read_side(settings),
    ):
        raise AssertionError("it was opened")
