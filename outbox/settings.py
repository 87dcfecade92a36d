"""Settings: defaults, then a TOML file, then ``OUTBOX_*`` environment variables, then what the caller gives.

The file is ``outbox.toml`` in the working folder, or the one that ``--config`` or ``OUTBOX_CONFIG`` names. A
nested key is written with two underscores in the environment: ``OUTBOX_KAFKA__BOOTSTRAP=host:9092``. The
read side's sections (``stores``, ``projectors``) are kept here as they are and checked there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from outbox.broker.settings import MESSAGE_BYTES_MAX, Client, Compression, KafkaSettings, check_replication
from outbox.errors import SettingsError
from outbox.relay.settings import DeliveryName, EngineName, RelaySettings, check_name

FILE: Final = "outbox.toml"
ENVIRONMENT: Final = "OUTBOX_"
CONFIG: Final = "OUTBOX_CONFIG"
NOT_SETTINGS: Final = ("OUTBOX_TEST_", "OUTBOX_LOCAL_")
"""Prefixes of variables that are read elsewhere."""
SECRET: Final = frozenset({"database", "security", "stores"})
"""Sections that may hold passwords: their values are never repeated in a message."""
SHOWN_LENGTH: Final = 80

HOUR_S: Final = 3_600
"""The longest that librdkafka waits for an answer, or lets a session last."""
DAY_S: Final = 86_400
LINGER_MAX_MS: Final = 900_000
MESSAGE_BYTES_CEILING: Final = 1_000_000_000
"""librdkafka's own bounds."""
PROJECTOR_LENGTH_MAX: Final = 100
PAGE_CEILING: Final = 1_000_000
"""Rows of a page are in memory at once, up to four times: more is a slip of the pen."""

_named: ContextVar[Path | None] = ContextVar("outbox_config", default=None)
"""The file given to :func:`load`, for pydantic's hook, which can be given nothing."""


def _folder(value: Any) -> Any:
    """A folder as it is given, refused if it is empty, which would be the working folder, or none that can be."""
    if value == "" or "\0" in str(value):
        raise ValueError("give a folder's path; '.' is this one")
    return value


Folder = Annotated[Path, BeforeValidator(_folder)]


def _projector(name: str) -> str:
    """The name of a projector: part of those of files, of Kafka's groups and of what is in the stores."""
    if not name.strip() or not name.isprintable() or "/" in name or len(name) > PROJECTOR_LENGTH_MAX:
        raise ValueError(f"a projector's name has 1 to {PROJECTOR_LENGTH_MAX} printable characters and no '/'")
    return name


Projector = Annotated[str, AfterValidator(_projector)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Database(Section):
    """PostgreSQL. In the embedded mode ``dsn`` may be left out: a server of our own is started."""

    dsn: Annotated[str, StringConstraints(strip_whitespace=True)] | None = None


class Kafka(Section):
    """See :class:`outbox.broker.settings.KafkaSettings`."""

    bootstrap: str | None = None
    client: Client = "auto"
    partitions: int = Field(12, ge=1, le=10_000)
    replication: Annotated[int, AfterValidator(check_replication)] = -1
    compression: Compression | None = None
    linger_ms: float | None = Field(None, ge=0, le=LINGER_MAX_MS)
    max_message_bytes: int = Field(MESSAGE_BYTES_MAX, ge=1_000, le=MESSAGE_BYTES_CEILING)
    session_timeout_s: float = Field(10.0, ge=0.1, le=HOUR_S)
    member: str | None = None
    timeout_s: float = Field(30.0, ge=0.1, le=HOUR_S)
    security: dict[str, Any] = {}


class Relaying(Section):
    """See :class:`outbox.relay.relay.RelaySettings`."""

    name: Annotated[str, AfterValidator(check_name)] = "relay"
    engine: EngineName = "poll"
    delivery: DeliveryName = "at_least_once"
    slot_wal_warn_bytes: int = Field(1 << 30, ge=1 << 20, le=1 << 60)
    lease_s: float = Field(3.0, gt=0.1, le=DAY_S)
    page_max: int = Field(5_000, ge=200, le=PAGE_CEILING)
    sleep_max_s: float = Field(0.05, ge=0.001, le=DAY_S)


class Projecting(Section):
    """One projector: which projection it keeps in which store."""

    projection: str
    """``vectors``, ``graph`` or ``documents`` of the built-in entities, ``rows`` of captured tables, or ``module:name``
    of your own."""
    store: str
    """The name of an installed sink; how to reach its store stands under ``stores``."""
    categories: tuple[str, ...] = ("python", "text", "entity")
    """Followed by the built-in projections; one of your own says itself."""
    embedder: str = "hashing"
    batch: int = Field(500, ge=1, le=10_000)


class Settings(BaseSettings):
    """All settings. Build it with :func:`load`, which turns what is wrong into one line."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    mode: Literal["embedded", "servers"] = "embedded"
    data_dir: Folder = Path(".outbox")
    """Where the embedded mode keeps everything."""
    prefix: str = Field("outbox", pattern=r"^[A-Za-z0-9._]{1,200}$")
    """Topics are named ``<prefix>.<category>``, in 249 characters at most."""
    schemas: tuple[Folder, ...] = ()
    """Folders of your own ``*.avsc`` files."""
    database: Database = Database()
    kafka: Kafka = Kafka()
    relay: Relaying = Relaying()
    stores: dict[str, dict[str, Any]] = {}
    projectors: dict[Projector, Projecting] = {}

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:  # a home that there is not, which pydantic would let through as it is
            raise ValueError(f"{value}: there is no such home folder") from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        file = _file()
        read = (TomlConfigSettingsSource(settings_cls, file),) if file else ()
        return (init_settings, env_settings, *read)

    @property
    def dsn(self) -> str:
        """PostgreSQL's address. Raises :class:`~outbox.errors.SettingsError` if there is none."""
        if not self.database.dsn:
            raise SettingsError("database.dsn is not set (OUTBOX_DATABASE__DSN): where is PostgreSQL?")
        return self.database.dsn

    def relay_settings(self) -> RelaySettings:
        relay = self.relay
        return RelaySettings(
            name=relay.name,
            prefix=self.prefix,
            engine=relay.engine,
            delivery=relay.delivery,
            slot_wal_warn_bytes=relay.slot_wal_warn_bytes,
            lease_s=relay.lease_s,
            page_max=relay.page_max,
            sleep_max_s=relay.sleep_max_s,
        )

    def kafka_settings(self) -> KafkaSettings:
        """Raises :class:`~outbox.errors.SettingsError` if Kafka's address is missing."""
        if not self.kafka.bootstrap:
            raise SettingsError("kafka.bootstrap is not set (OUTBOX_KAFKA__BOOTSTRAP): where is Kafka?")
        given = {k: v for k, v in self.kafka.model_dump().items() if v is not None}
        return KafkaSettings(**given)


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """The settings as they are now. Raises :class:`~outbox.errors.SettingsError` that names the key."""
    _check_environment(os.environ)
    token = _named.set(config)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_spoken(error)) from error
    except (ValueError, OSError) as error:  # malformed TOML, or JSON in a variable
        raise SettingsError(f"settings cannot be read: {error}") from error
    finally:
        _named.reset(token)


def _file() -> Path | None:
    named = _named.get() or os.environ.get(CONFIG)
    path = Path(named or FILE)
    if path.is_file():
        return path
    if named:
        raise SettingsError(f"settings file {str(named)!r} does not exist")
    return None


def _check_environment(environment: Mapping[str, str]) -> None:
    known = set(Settings.model_fields)
    for name in environment:
        if not name.startswith(ENVIRONMENT) or name == CONFIG or name.startswith(NOT_SETTINGS):
            continue
        key = name.removeprefix(ENVIRONMENT).split("__")[0].lower()
        if key not in known:
            raise SettingsError(f"{name}: there is no setting {key!r}; known are {', '.join(sorted(known))}")


def _spoken(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"settings: there is no key {key!r}"
    said = first["msg"].removeprefix("Value error, ")
    return f"settings: {key!r} is wrong: {said}{_got(first['loc'], first.get('input'))}"


def _got(where: tuple[int | str, ...], value: object) -> str:
    """What was given, where that helps and gives nothing away."""
    if SECRET.intersection(map(str, where)) or not isinstance(value, str | int | float):
        return ""
    shown = repr(value)
    return f" (got {shown})" if len(shown) <= SHOWN_LENGTH else ""
