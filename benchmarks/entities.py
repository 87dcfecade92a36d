"""The events that the benchmarks of stores write, one entity a stream, and the records they come to.

An entity's text is drawn from a vocabulary whose words are as unevenly common as in a language (Zipf), from its number
and version alone: every run and every contender has the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, Final

import psycopg

from outbox.codec import Registry
from outbox.database import connected
from outbox.event import NewEvent
from outbox.log.bulk import bulk_append
from projectors.entity import Entity, EntityProjection
from projectors.model import model
from projectors.pipeline import Plan, embedded_records
from projectors.record import Record, Row

CATEGORY: Final = "entity"
KIND: Final = "function"
LINK: Final = "calls"
LINKS: Final = 2
WORDS: Final = 40
"""Of a text, about 270 characters: an event of 450 bytes with its links and properties."""
VOCABULARY: Final = 5_000
STREAMS_A_TRANSACTION: Final = 10_000


class EntityRows(EntityProjection):
    """One row an entity, for relational stores."""

    def record(self, entity: Entity, root: Entity) -> Row:
        del root
        columns = {"kind": entity.kind, "name": entity.name, "text": entity.text, **entity.properties}
        return Row(entity.key, columns)


def stream(n: int) -> str:
    return f"{CATEGORY}-{n:08}"


def name(n: int) -> str:
    return f"Function{n}"


def text(n: int, version: int) -> str:
    words, weights = _vocabulary()
    return " ".join(random.Random(n * 1_000 + version).choices(words, cum_weights=weights, k=WORDS))


def entity(n: int, version: int, total: int) -> NewEvent:
    """The entity's ``version``-th form. Its links stay as they are, all else changes."""
    links = [{"kind": LINK, "target": stream(target)} for target in _targets(n, total)]
    properties = {"line": n, "version": version, "module": f"module{n % 97}"}
    data = {"kind": KIND, "name": name(n), "text": text(n, version), "properties": properties, "links": links}
    return NewEvent("entity.upserted", data)


def fill(dsn: str, total: int, versions: Sequence[int] = (1,)) -> None:
    """Append one event to each of ``total`` streams for every version: all first ones, then all second ones."""
    with connected(dsn) as connection:
        for version in versions:
            for start in range(0, total, STREAMS_A_TRANSACTION):
                _fill(connection, range(start, min(start + STREAMS_A_TRANSACTION, total)), version, total)


def records(dsn: str, plan: Plan, registry: Registry) -> list[Record]:
    """What the store should hold, as the log is now; with vectors."""
    with connected(dsn) as connection:
        bare = [record for one in model(connection, plan, registry) for record in one.records]
    return embedded_records(bare, plan.embed)


def _fill(connection: psycopg.Connection[Any], numbers: range, version: int, total: int) -> None:
    with connection.transaction():
        bulk_append(connection, ((stream(n), version - 1, [entity(n, version, total)]) for n in numbers))


def _targets(n: int, total: int) -> Iterator[int]:
    return (m for m in {(n * 7 + 1) % total, (n // 2) % total} if m != n)


@cache
def _vocabulary() -> tuple[Sequence[str], Sequence[float]]:
    syllables = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va"]
    words = ["".join(random.Random(n).choices(syllables, k=2 + n % 3)) + str(n % 10) for n in range(VOCABULARY)]
    return words, list(accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))


PROJECTIONS: Final[Mapping[str, type[EntityProjection]]] = {"entity_rows": EntityRows}
"""Beside the built-in ones."""
