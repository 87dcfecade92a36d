"""Sessions with Neo4j that end: every wait is bounded, every error is one of ours.

The driver waits without end for a server that has accepted a connection and then falls silent (paused, or
cut off by a network that drops packets). So each session has a watch: when its time is up the driver is
closed from outside, which breaks the wait, and the next session gets a new driver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Timer
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self

import neo4j
from neo4j.exceptions import ConfigurationError, DriverError, Neo4jError
from pydantic import BaseModel, ConfigDict

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks.given import Seconds, checked

Args = ParamSpec("Args")

CONNECT_TIMEOUT_S: Final = 5.0
SYNTAX: Final = "Neo.ClientError.Statement.SyntaxError"
OUT_OF_MEMORY: Final = "OutOfMemoryError"
"""How the codes end of what says that a transaction, or all of them together, need more than Neo4j may take."""
GRACE_S: Final = 2.0
"""What a session may take beyond its transactions, for the answers to travel."""


class TooLarge(StoreUnavailable):
    """A transaction does not fit into the server's memory for transactions; a smaller one may."""


class Neo4jSettings(BaseModel):
    """How to reach a database."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    username: str | None = None
    password: str | None = None
    database: str | None = None
    timeout_s: Seconds = 30.0
    retry_s: Seconds = 10.0


def parse(settings: Mapping[str, Any]) -> Neo4jSettings:
    """Check the settings; raises :class:`SettingsError` that names the key."""
    return checked("neo4j", Neo4jSettings, settings)


def label_of(projection: str, generation: str) -> str:
    """The generation's label. Generations have no ``.``, so no two projections share one."""
    return f"p_{projection}.{generation}"


_PREPARED: Final = "MATCH (g:OutboxGeneration {label: $label}) RETURN count(g) AS count"


def cypher(text: str, label: str) -> str:
    """The statement for one generation: Neo4j finds its indexes only by labels that stand in the text."""
    escaped = label.replace("`", "``")
    return re.sub("LABEL|NAME", lambda found: f"`{escaped}`" if found[0] == "LABEL" else escaped, text)


def not_prepared(label: str) -> StoreUnavailable:
    return StoreUnavailable(f"neo4j: generation {label} has not been prepared")


class Connection:
    """A driver, replaced when it had to be broken. Opens nothing before the first session.

    Raises :class:`SettingsError` for an address that is none. Used by one thread at a time.
    """

    def __init__(self, settings: Neo4jSettings) -> None:
        self.settings = settings
        self._open()

    @contextmanager
    def session(self, doing: str, within_s: float | None = None) -> Iterator[neo4j.Session]:
        """A session that may last ``within_s`` (default: one transaction with its retries).

        Raises :class:`StoreUnavailable`, or :class:`StoreError` itself if a statement's data are to blame.
        """
        limit_s = within_s or self.settings.timeout_s + self.settings.retry_s
        if self._broken.is_set():  # by a watch that went off just as its session ended
            self._open()
        broken = self._broken
        watch = Timer(limit_s + GRACE_S, _break, (self._driver, broken))
        watch.daemon = True
        watch.start()
        try:
            with _translated(doing), self._driver.session(database=self.settings.database) as session:
                yield session
        except StoreError as error:
            if broken.is_set():
                raise StoreUnavailable(f"neo4j: {doing}: no answer within {limit_s:g} s") from error
            raise
        finally:
            watch.cancel()
            if broken.is_set():
                self._open()

    def check_prepared(self, label: str) -> None:
        """For whoever found nothing. Raises :class:`StoreUnavailable` if there is no such generation (any more): a drop
        takes its mark first."""
        with self.session(f"look for {label}") as session:
            found = session.run(_PREPARED, label=label).single(strict=True)
        if not found["count"]:
            raise not_prepared(label)

    def _open(self) -> None:
        self._driver = _driver(self.settings)
        self._broken = Event()
        """This driver was closed from outside."""

    def close(self) -> None:
        """Close the driver. May be called twice."""
        self._driver.close()

    def __enter__(self) -> Self:
        """Return itself; leaving closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _break(driver: neo4j.Driver, broken: Event) -> None:
    broken.set()
    driver.close()


def _driver(settings: Neo4jSettings) -> neo4j.Driver:
    try:
        return neo4j.GraphDatabase.driver(
            settings.url,
            auth=(settings.username, settings.password or "") if settings.username else None,
            connection_timeout=min(CONNECT_TIMEOUT_S, settings.timeout_s),
            connection_acquisition_timeout=settings.timeout_s,
            max_transaction_retry_time=settings.retry_s,
            notifications_min_severity="OFF",
            telemetry_disabled=True,
        )
    except (ConfigurationError, ValueError) as error:
        raise SettingsError(f"neo4j: setting 'url': {error}") from error


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except Neo4jError as error:
        message = f"neo4j: {doing}: {_one_line(error.message)}"
        if error.code == SYNTAX:  # the statements are ours: no record is to blame
            raise StoreUnavailable(f"{message}: the server takes no such statement, it may be too old") from error
        if _is_too_large(error):
            raise TooLarge(message) from error
        if error.category in ("Statement", "Schema") and not error.is_retryable():
            raise StoreError(message) from error
        raise StoreUnavailable(message) from error
    except (DriverError, OSError) as error:
        raise StoreUnavailable(f"neo4j: {doing}: {_one_line(str(error))}") from error


def _is_too_large(error: Neo4jError) -> bool:
    return bool(error.code and error.code.endswith(OUT_OF_MEMORY))


def once_if_too_large(
    work: Callable[Concatenate[neo4j.ManagedTransaction, Args], None],
) -> Callable[Concatenate[neo4j.ManagedTransaction, Args], None]:
    """The work of a transaction, ended by :class:`TooLarge` at once: the driver would try the same again."""

    def once(tx: neo4j.ManagedTransaction, /, *args: Args.args, **kwargs: Args.kwargs) -> None:
        try:
            work(tx, *args, **kwargs)
        except Neo4jError as error:
            if _is_too_large(error):
                with _translated("apply"):
                    raise
            raise

    return once


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())[:500]
