"""Settings as a store's section gives them, checked against its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from outbox.errors import SettingsError
from outbox.settings import DAY_S

Model = TypeVar("Model", bound=BaseModel)

Seconds = Annotated[float, Field(gt=0, le=DAY_S)]
"""How long something may take. Clients fail on what is endless, or wait for it."""


def only(store: str, settings: Mapping[str, Any], *known: str) -> None:
    """Raise :class:`~outbox.errors.SettingsError` for a key that the store does not have: one that is misspelt would
    be left out in silence, and the records be kept where its default says."""
    wrong = next((key for key in settings if key not in known), None)
    if wrong is not None:
        raise SettingsError(f"{store}: there is no setting {wrong!r}; known are {', '.join(known)}")


def checked(store: str, model: type[Model], settings: Mapping[str, Any]) -> Model:
    """The settings, which are texts if they come from the environment, as the model has them.

    Raises :class:`~outbox.errors.SettingsError` that names the store and the first key that is wrong.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{store}: setting {key!r}: {first['msg']}") from error
