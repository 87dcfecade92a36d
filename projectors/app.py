"""The embedded mode as one block of Python: everything runs while the block does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox.errors import OutboxError, SettingsError, VerificationFailed
from outbox.log.statement import Token
from outbox.logs import quiet_unless_configured
from outbox.settings import Projecting, Settings, load
from projectors import operations
from projectors.projection import Projection
from projectors.query.search import Search
from projectors.wiring import ReadSide, Running, open_read_side


@dataclass(frozen=True, slots=True)
class App:
    """The running product. ``dsn``: connect to it with what you like and append."""

    dsn: str
    search: Search
    side: ReadSide
    threads: Running

    def wait_for(self, token: Token, timeout_s: float = 10.0, projectors: Iterable[str] | None = None) -> None:
        """Return once every store (or those named) holds what the token's transaction wrote."""
        with _blaming(self.threads):
            self.search.wait_for(token, timeout_s, projectors, self.threads.check)

    def verify(self) -> None:
        """Raise :class:`~outbox.errors.VerificationFailed` if a record of any store differs from the log, or is not
        there since its stream is parked."""
        with _blaming(self.threads):
            reports = operations.verify(self.side)
        for report in reports:
            if report["differences"]:
                raise VerificationFailed(f"{report['store']} differs from the log: {report['differences'][0]}")
            if report["parked"]:
                raise VerificationFailed(self._parked(report["projector"], report["generation"], report["parked"]))

    def _parked(self, projector: str, generation: str, streams: int) -> str:
        said = f"{projector}: {streams} stream(s) are parked and lack in {generation}"
        letters = operations.OPERATIONS["dead_letters"](self.side, projector=projector)
        first = next((d for d in letters if d["generation"] == generation and d["version"]), None)
        return f"{said}, first {first['stream']}@{first['version']}: {first['error']}" if first else said


@contextmanager
def running(
    data_dir: str | Path | None = None,
    projections: Mapping[str, tuple[Projection, str]] | None = None,
    settings: Settings | None = None,
) -> Iterator[App]:
    """Run relay and projectors in this process.

    ``projections`` maps a projector's name to its projection and its store (``"chroma"``, ``"tantivy"``,
    ``"ladybug"``, ``"postgres"``, ...); they run beside those of the settings. Without either the built-in projections
    of entities run. ``settings``: all else (:func:`outbox.settings.load`); None: those of ``outbox.toml`` and of the
    environment.

    Relay and projectors are threads. What ends one of them for good (a store that is not installed, an error in a sink
    of your own) ends all, and is raised by :meth:`App.wait_for`, :meth:`App.verify` and at the end of the block.
    """
    quiet_unless_configured()
    given = dict(_pairs(projections or {}))
    folder: dict[str, Any] = {} if data_dir is None else {"data_dir": Path(data_dir).expanduser().absolute()}
    settings = load(**folder) if settings is None else settings.model_copy(update=folder)
    if given:
        own = {name: _projecting(settings, name, store) for name, (_, store) in given.items()}
        settings = settings.model_copy(update={"projectors": {**settings.projectors, **own}})
    with (
        open_read_side(settings, {name: projection for name, (projection, _) in given.items()}) as side,
        Running(side) as threads,
        Search(side) as search,
        _blaming(threads),
    ):
        yield App(side.write.dsn, search, side, threads)


@contextmanager
def _blaming(threads: Running) -> Iterator[None]:
    """Raise what ended a thread, if one has ended by itself: what fails for want of it says nothing of the cause."""
    threads.check()
    try:
        yield
    except OutboxError:
        threads.check()
        raise
    threads.check()


def _pairs(projections: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Projection, str]]]:
    for name, pair in projections.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], str):
            raise SettingsError(f"projections[{name!r}] must be a pair: the projection, and the name of its store")
        yield name, pair


def _projecting(settings: Settings, name: str, store: str) -> Projecting:
    """A given projector's settings: what is set of it stays."""
    known = settings.projectors.get(name) or Projecting(projection=name, store=store)
    return known.model_copy(update={"projection": name, "store": store})
