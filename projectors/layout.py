"""Which projectors there are and where each keeps its records, as far as the settings tell: nothing is opened."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from outbox.envelope import topic_of
from outbox.errors import InvalidEvent, SettingsError
from outbox.event import category_of, check_stream
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
PARTS: Final = ("fold", "records", "categories")
"""What a projection has."""
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
        """A projector's projection. Raises :class:`~outbox.errors.SettingsError` if it is not there, or is none."""
        settings = self.of(name)
        wanted = settings.projection
        if wanted in self.given:
            return _checked(f"the projection {wanted!r}", self.given[wanted])
        if wanted in BUILT_IN:
            return _checked(f"projectors.{name}", BUILT_IN[wanted](settings.categories))
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
    what = f"projectors.{name}.projection is {wanted!r}"
    module, _, attribute = wanted.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(BUILT_IN)
        raise SettingsError(
            f"{what}: neither one of {known} nor a module:name ({error}); Python must find the module: install its"
            " package here, or name its folder in PYTHONPATH"
        ) from error
    except Exception as error:  # the module's own code may raise anything
        raise SettingsError(f"{what}, which cannot be imported: {type(error).__name__}: {error}") from error
    try:
        made = found() if isinstance(found, type) else found
    except TypeError as error:
        raise SettingsError(f"{what}, which cannot be made without arguments: {error}") from error
    return _checked(what, made)


def _checked(what: str, projection: Any) -> Projection:
    """The projection. Raises :class:`~outbox.errors.SettingsError` for what is none, or would follow no stream."""
    if isinstance(projection, type):
        raise SettingsError(f"{what} is a class: give an instance of it, {projection.__name__}()")
    lacking = [part for part in PARTS if not hasattr(projection, part)]
    if lacking:
        raise SettingsError(f"{what}, which is no projection: it has no {', '.join(lacking)}")
    categories = projection.categories
    if isinstance(categories, str) or not isinstance(categories, Collection):
        raise SettingsError(f"{what}: categories is {categories!r:.80}: give a tuple of names, such as ('customer',)")
    if not categories:
        raise SettingsError(f"{what}: categories is empty, so it would follow no stream: name one at least")
    for category in categories:
        try:
            whole = category_of(check_stream(category)) == category
        except (InvalidEvent, TypeError, AttributeError):
            whole = False
        if not whole:
            raise SettingsError(
                f"{what}: the category {category!r:.80} is none: it is what stands before the first '-' of a stream's"
                " name, letters, digits, '.' and '_'"
            )
    found: Projection = projection
    return found
