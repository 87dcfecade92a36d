"""Reaching Elasticsearch: settings, the client, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from elastic_transport import ConnectionTimeout
from elasticsearch import ApiError, Elasticsearch, TransportError
from elasticsearch.serializer import OrjsonSerializer
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks.given import Seconds, checked

RETRY_AFTER_S: Final = 2.0
"""Elasticsearch gives no Retry-After with its 429; its queues drain within seconds."""


class ElasticsearchSettings(BaseModel):
    """How to reach a cluster, and how to make an index in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    username: str | None = None
    password: str | None = None
    api_key: str | None = None
    shards: PositiveInt = 1
    replicas: NonNegativeInt = 0
    refresh: bool | Literal["wait_for"] = False
    timeout_s: Seconds = 30.0


def parse(settings: Mapping[str, Any]) -> ElasticsearchSettings:
    """Check the settings; raises :class:`SettingsError` that names the key."""
    return checked("elasticsearch", ElasticsearchSettings, settings)


def connect(settings: ElasticsearchSettings) -> Elasticsearch:
    """A client that never tries again by itself (the projector does) and reads JSON without losing a digit."""
    basic = (settings.username, settings.password or "") if settings.username else None
    try:
        return Elasticsearch(
            settings.url,
            basic_auth=basic,
            api_key=settings.api_key,
            request_timeout=settings.timeout_s,
            max_retries=0,
            serializers={"application/vnd.elasticsearch+json": OrjsonSerializer()},
        )
    except ValueError as error:
        raise SettingsError(f"elasticsearch: setting 'url' or its credentials: {error}") from error


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn the client's errors into ours: whatever may pass is :class:`StoreUnavailable`."""
    try:
        yield
    except ConnectionTimeout as error:
        raise StoreUnavailable(f"elasticsearch: {doing}: no answer in time") from error
    except TransportError as error:
        raise StoreUnavailable(f"elasticsearch: {doing}: {_one_line(error)}") from error
    except ApiError as error:
        if error.status_code in (400, 413):
            raise StoreError(f"elasticsearch: {doing}: {_one_line(error)}") from error
        retry_after_s = RETRY_AFTER_S if error.status_code == 429 else None
        raise StoreUnavailable(f"elasticsearch: {doing}: {_one_line(error)}", retry_after_s) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
