"""Which projectors there are and where each keeps its records, as far as the settings tell: nothing is opened."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from outbox.envelope import topic_of
from outbox.errors import SettingsError
from outbox.logs import settle
from outbox.settings import Projecting, Settings
from projectors.entity import EntityDocuments, EntityGraph, EntityVectors
from projectors.projection import Projection
from projectors.rows import Rows

BUILT_IN: Final[Mapping[str, Callable[[tuple[str, ...]], Projection]]] = {
    "vectors": EntityVectors,
    "graph": EntityGraph,
    "documents": EntityDocuments,
    "rows": Rows,
}
EMBEDDED: Final = {"vectors": "chroma", "graph": "ladybug", "documents": "tantivy"}
PARTS: Final = ("fold", "records")
"""What a projection's class has, whatever else only its instances have."""
SERVERS: Final = {"vectors": "chroma", "graph": "neo4j", "documents": "elasticsearch"}


@dataclass(frozen=True)
class Layout:
    """Projectors, projections and stores by name. ``dsn``: where PostgreSQL is in either mode."""

    settings: Settings
    dsn: str
    given: Mapping[str, Projection] = field(default_factory=dict)
    """Projections given in Python, by the name the settings use for them."""

    @cached_property
    def projecting(self) -> Mapping[str, Projecting]:
        """The projectors' settings; the mode's own three if none are set. Raises
        :class:`~outbox.errors.SettingsError` for two names that cannot stand beside each other."""
        if self.settings.projectors:
            _check_names(self.settings.projectors)
            return self.settings.projectors
        stores = EMBEDDED if self.settings.mode == "embedded" else SERVERS
        return {name: Projecting(projection=name, store=store) for name, store in stores.items()}

    def of(self, name: str) -> Projecting:
        """One projector's settings. Raises :class:`~outbox.errors.SettingsError` for an unknown name."""
        try:
            return self.projecting[name]
        except KeyError:
            known = ", ".join(sorted(self.projecting))
            raise SettingsError(f"there is no projector {name!r}; known are {known}") from None

    def topics(self, projection: Projection) -> tuple[str, ...]:
        """The topics that carry a projection's categories."""
        return tuple(topic_of(self.settings.prefix, category) for category in projection.categories)

    def projection(self, name: str) -> Projection:
        """A projector's projection. Raises :class:`~outbox.errors.SettingsError` if it is nowhere to be found."""
        settings = self.of(name)
        wanted = settings.projection
        if wanted in self.given:
            return self.given[wanted]
        if wanted in BUILT_IN:
            return BUILT_IN[wanted](settings.categories)
        return _imported(name, wanted)

    def store_settings(self, store: str) -> dict[str, Any]:
        """A store's settings; in the embedded mode each has a folder of its own by default."""
        given = dict(self.settings.stores.get(store, {}))
        if self.settings.mode == "embedded" and store in EMBEDDED.values() and "url" not in given:
            given.setdefault("path", str(self.settings.data_dir / store))
        if not isinstance(given.get("path", ""), str):
            raise SettingsError(f"stores.{store}.path must be a text, the name of a folder")
        if store == "postgres":
            given.setdefault("dsn", self.dsn)
        return given


def _check_names(projectors: Mapping[str, Projecting]) -> None:
    """In Elasticsearch a projector's alias and the indexes of another must not have one name."""
    names = [name for name, settings in projectors.items() if settings.store == "elasticsearch"]
    for name in names:
        shorter = re.sub(r"-g[0-9]+(-write)?$", "", name)
        if shorter != name and shorter in names:
            raise SettingsError(
                f"projectors.{name}: {shorter!r} has an index of that name in elasticsearch: give one another name"
            )


def _imported(name: str, wanted: str) -> Projection:
    settle()  # logging, which the module may use as soon as it is imported
    module, _, attribute = wanted.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(BUILT_IN)
        raise SettingsError(
            f"projectors.{name}.projection is {wanted!r}: neither one of {known} nor a module:name ({error})"
        ) from error
    lacking = [part for part in PARTS if not hasattr(found, part)]
    if lacking:
        raise SettingsError(
            f"projectors.{name}.projection is {wanted!r}, which is no projection: it has no {', '.join(lacking)}"
        )
    projection: Projection = found() if isinstance(found, type) else found
    return projection
