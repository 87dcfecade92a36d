"""What the page on projections shows is run as it stands there."""

from __future__ import annotations

import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from outbox import Event, Registry
from outbox.settings import load

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-projection.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def block(holding: str) -> str:
    (one,) = [b for b in blocks("python") if holding in b]
    return one


@pytest.fixture
def shown() -> dict[str, Any]:
    """The names that the page's projection, with what it says of events that say all, defines."""
    names: dict[str, Any] = {}
    exec(block("class Customers") + "\n" + textwrap.indent(textwrap.dedent(block("def resets")), "    "), names)
    return names


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """The page's event types."""
    (schema,) = blocks("json")
    (tmp_path / "customer.changed.v1.avsc").write_text(schema)
    (tmp_path / "customer.replaced.v1.avsc").write_text(schema.replace("CustomerChanged", "CustomerReplaced"))
    (tmp_path / "customer.deleted.v1.avsc").write_text('{"type": "record", "name": "CustomerDeleted", "fields": []}')
    return Registry.load(tmp_path)


def event(registry: Registry, version: int, kind: str, **data: Any) -> Event:
    decoded = registry.decode(kind, registry.encode(kind, data))
    return Event("customer-1", version, kind, decoded, uuid4(), version, datetime.now(UTC), {})


def test_the_projection_makes_records_of_its_events(shown: dict[str, Any], registry: Registry) -> None:
    customers = shown["Customers"]()
    state = customers.fold(None, event(registry, 1, "customer.changed", name="Ada", orders=[{"title": "a lamp"}]))
    assert [r.key for r in customers.records("customer-1", state)] == ["customer-1", "customer-1#order-0"]


def test_what_it_says_of_events_that_say_all_is_true_of_its_fold(shown: dict[str, Any], registry: Registry) -> None:
    """It was not: `customer.replaced` was laid over the state before, and a rebuild made other records."""
    customers = shown["Customers"]()
    before = {"name": "Ada", "notes": "", "orders": [], "more": 1}
    for number, (kind, data) in enumerate({"customer.replaced": {"name": "Bob"}, "customer.deleted": {}}.items()):
        assert customers.resets("customer-1", number, kind)
        one = event(registry, number, kind, **data)
        assert customers.fold(before, one) == customers.fold(None, one)


def test_its_test_of_the_projection_passes(shown: dict[str, Any]) -> None:
    exec(block("datetime.now"), shown)


def test_its_settings_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toml,) = blocks("toml")
    (tmp_path / "outbox.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    settings = load()
    assert [str(folder) for folder in settings.schemas] == ["schemas"]
    assert settings.projectors["customers"].projection == "shop.projections:Customers"
