"""How the Chroma sink and reader reach their store, name its collections and tell its errors apart.

``settings``, one of:

* ``{"path": FOLDER}``: Chroma in a process that belongs to this one (:mod:`projectors.sinks.chroma_engine`). A folder
  takes one process at a time; within a process every sink and reader of the folder shares one engine, which ends
  some seconds after the last of them.
* ``{"url": "http://host:port"}``: a Chroma server; also ``headers`` (a mapping), ``tenant``, ``database``
  and ``timeout_s``.

And with either ``dimensions``, see :mod:`projectors.sinks.chroma`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

import chromadb
import httpx
from chromadb.api import ClientAPI, ServerAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings
from chromadb.errors import ChromaError, NotFoundError
from pydantic import BaseModel, ConfigDict, PositiveInt

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks.chroma_engine import Engine, EngineClient, EngineCollection
from projectors.sinks.given import Seconds, checked
from projectors.sinks.shared import Shared

TIMEOUT_S: Final = 30.0
"""How long a server may take to answer. A full batch of 5,461 records takes it a few seconds on two cores."""

REFUSED: Final = frozenset({400, 413, 422})
"""HTTP's words for "this request will never do": malformed, too large, not valid."""

Part = Literal["records", "tombstones"]

Client: TypeAlias = ClientAPI | EngineClient
Records: TypeAlias = Collection | EngineCollection

RESTS_S: Final = 3.0
"""How long an engine that nobody holds stays open: to start one takes a second or two, most of it Chroma's imports, and
who builds a generation, then serves it, lets go in between. Another process that wants the folder waits for its end."""

_ENGINES: Final = Shared(Engine.close, rests_s=RESTS_S, fits=Engine.fits)

_OPENING = threading.Lock()
"""Chroma counts the clients of an address, but makes and ends what they share outside its own lock."""


class ChromaSettings(BaseModel):
    """Where the store is, and what it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    timeout_s: Seconds = TIMEOUT_S
    dimensions: PositiveInt | None = None


def parse(settings: Mapping[str, Any]) -> ChromaSettings:
    """Check the settings, which are texts if they come from the environment; raises :class:`SettingsError` that names
    the key."""
    parsed = checked("chroma", ChromaSettings, settings)
    if (parsed.path is None) == (parsed.url is None):
        raise SettingsError("chroma: give either 'path' (a folder) or 'url' (a server)")
    return parsed


def collection_name(projection: str, generation: str, part: Part) -> str:
    """The collection's name. A generation holds no dot, so no two projections can meet in one name."""
    return f"{projection}.{generation}.{part}"


@contextmanager
def open_client(settings: Mapping[str, Any]) -> Iterator[Client]:
    """A client of the store that ``settings`` name. Raises ``SettingsError`` or ``StoreUnavailable``."""
    parsed = parse(settings)
    with _embedded(parsed.path) if parsed.path is not None else _remote(parsed) as client:
        yield client


@contextmanager
def translated() -> Iterator[None]:
    """Raise what Chroma raises as ``StoreUnavailable``, or as ``StoreError`` if asking again cannot help."""
    try:
        yield
    except NotFoundError as error:
        raise StoreUnavailable(f"chroma: {error}: prepare the generation first") from error
    except Exception as error:
        if not _is_chromas(error):
            raise
        raise _typed(error) from error


def is_refusal(error: Exception) -> bool:
    """Whether Chroma says that the request itself is wrong, so that sending it again cannot succeed."""
    if isinstance(error, NotFoundError):
        return False
    if isinstance(error, ChromaError):
        return error.code() in REFUSED
    if isinstance(error.__context__, httpx.HTTPStatusError):
        return error.__context__.response.status_code in REFUSED
    return isinstance(error, ValueError | TypeError | OverflowError)


def _is_chromas(error: Exception) -> bool:
    """Its client also raises ``ValueError`` (nobody answers) and a bare ``Exception`` (the answer is no JSON)."""
    known = (ChromaError, httpx.HTTPError, OSError, RuntimeError, ValueError)
    return isinstance(error, known) or type(error) is Exception


def _typed(error: Exception) -> StoreError:
    said = (str(error) or type(error).__name__).splitlines()[0]
    return StoreError(f"chroma refuses: {said}") if is_refusal(error) else StoreUnavailable(f"chroma: {said}")


@contextmanager
def _embedded(path: Path) -> Iterator[EngineClient]:
    folder = path.absolute()
    with ExitStack() as stack:
        with translated():
            try:
                engine = stack.enter_context(_ENGINES.hold(folder, Engine))
            except ValueError as error:
                raise SettingsError(f"chroma: {folder} cannot be opened: {error}") from error
        yield EngineClient(engine)


@contextmanager
def _remote(settings: ChromaSettings) -> Iterator[ClientAPI]:
    parts = _address(str(settings.url).rstrip("/"))
    own = quiet() if parts.scheme == "https" else quiet(chroma_server_ssl_verify=False)
    try:
        with _OPENING, translated():
            client = _connected(settings, parts, own)
        yield client
    finally:
        with _OPENING:
            _let_go(own)


def _let_go(own: Settings) -> None:
    """End all that Chroma has made for a client of these settings: two systems, each with a session of its own.

    The client's own ``close`` closes neither session, and leaves one of the systems in Chroma's list for good (1.5).
    """
    known = SharedSystemClient._identifier_to_system  # noqa: SLF001
    for name, system in list(known.items()):
        if system.settings is own:
            del known[name]
            SharedSystemClient._identifier_to_refcount.pop(name, None)  # noqa: SLF001
            system.instance(ServerAPI)._session.close()  # noqa: SLF001
            system.stop()


def _address(url: str) -> SplitResult:
    with suppress(ValueError):  # of brackets that do not close, or a port that is none
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return parts
    raise SettingsError(f"chroma: 'url' must be http(s)://host:port, not {url!r}")


def _connected(settings: ChromaSettings, parts: SplitResult, own: Settings) -> ClientAPI:
    secure = parts.scheme == "https"
    _ask_whether_it_lives(parts.geturl(), settings.timeout_s, secure)
    client = chromadb.HttpClient(
        host=str(parts.hostname),
        port=parts.port or (443 if secure else 80),
        ssl=secure,
        headers=dict(settings.headers),
        settings=own,
        tenant=settings.tenant,
        database=settings.database,
    )
    # Chroma's session waits for ever and has no setting for it.
    client._system.instance(ServerAPI)._session.timeout = httpx.Timeout(settings.timeout_s)  # noqa: SLF001
    return client


def _ask_whether_it_lives(url: str, timeout_s: float, secure: bool) -> None:
    """Constructing the client asks the server too, but without a bound on the wait.

    Without TLS there is nothing to verify, and httpx would read all of the machine's certificates for it (25 ms).
    """
    try:
        httpx.get(f"{url}/api/v2/heartbeat", timeout=timeout_s, verify=secure).raise_for_status()
    except httpx.HTTPError as error:
        raise StoreUnavailable(f"chroma: {url} does not answer: {error}") from error


def quiet(**settings: Any) -> Settings:
    """No telemetry. New settings for each client: Chroma writes its host and port into those it is given."""
    return Settings(anonymized_telemetry=False, **settings)
