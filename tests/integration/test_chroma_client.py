"""Clients of a Chroma server: what is left of them once they are closed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from chromadb.api.shared_system_client import SharedSystemClient

from outbox.errors import StoreUnavailable
from projectors.sinks.chroma_client import open_client

TIMES = 5


@pytest.mark.parametrize("tenant", ["default_tenant", "nobody"])
def test_a_client_of_a_chroma_server_leaves_no_connection(address: Callable[[str], str], tenant: str) -> None:
    def open_and_close() -> None:
        try:
            with open_client({"url": address("chroma"), "tenant": tenant}) as client:
                client.get_max_batch_size()
        except StoreUnavailable:
            assert tenant == "nobody"

    def left() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/dev/fd").iterdir())), len(SharedSystemClient._identifier_to_system)

    open_and_close()
    before = left()
    for _ in range(TIMES):
        open_and_close()
    assert left() == before
