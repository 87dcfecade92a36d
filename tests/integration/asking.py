"""A small world of entities, kept in stores by the product itself, for tests that ask and operate."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox.database import Connection, connected
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.statement import Token
from outbox.settings import Projecting, Settings, load
from projectors import ledger
from projectors.wiring import ReadSide, Running, open_read_side

MEMORY = {"graph": "memory", "documents": "memory"}
EMBEDDED = {"vectors": "chroma", "graph": "ladybug", "documents": "tantivy"}
NOBODY = "127.0.0.1:1"
"""A port that refuses."""

ANIMALS = {
    "animal-walrus": ("walrus", "The walrus eats clams on the ice of the northern sea", ["animal-clam"]),
    "animal-clam": ("clam", "A clam lives in the mud below the sea", ["animal-plankton"]),
    "animal-plankton": ("plankton", "Plankton drifts in the light near the surface", []),
    "animal-camel": ("camel", "The camel crosses the desert without water", []),
}


def animal(name: str, text: str, eats: list[str]) -> NewEvent:
    links = [{"kind": "eats", "target": target, "properties": {}} for target in eats]
    data = {"kind": "animal", "name": name, "text": text, "properties": {}, "links": links, "parts": []}
    return NewEvent("entity.upserted", data)


@dataclass(frozen=True)
class World:
    side: ReadSide
    connection: Connection

    def append(self, stream: str, event: NewEvent) -> Token:
        return append(self.connection, stream, event, registry=self.side.write.registry).token

    def populate(self) -> Token:
        tokens = [self.append(stream, animal(*of)) for stream, of in ANIMALS.items()]
        return tokens[-1]

    def serving(self, name: str) -> str | None:
        return ledger.serving(self.connection, name)


def settings_of(dsn: str, folder: Path, kept: Mapping[str, str], **more: Any) -> Settings:
    """Projectors named for their kinds, in these stores, on the local broker."""
    projectors = {k: Projecting(projection=k, store=s, categories=("animal",)) for k, s in kept.items()}
    spaces = {"memory": {"space": uuid.uuid4().hex}}
    return load(
        mode="embedded",
        data_dir=folder,
        database={"dsn": dsn},
        projectors={**projectors, **more.pop("projectors", {})},
        stores={**spaces, **more.pop("stores", {})},
        **more,
    )


@contextmanager
def world(settings: Settings) -> Iterator[World]:
    with open_read_side(settings) as side, connected(side.write.dsn) as connection:
        yield World(side, connection)


@contextmanager
def running(world: World, names: list[str] | None = None) -> Iterator[Running]:
    """Relay and projectors, past their first builds."""
    with Running(world.side, names) as run:
        for name in world.side.projecting if names is None else names:
            until(lambda name=name: run.check() or world.serving(name))
        yield run


def until(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.01)
    return found
