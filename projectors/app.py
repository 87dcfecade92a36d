"""The embedded mode as one block of Python: everything runs while the block does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox.errors import VerificationFailed
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

    def wait_for(self, token: Token, timeout_s: float = 10.0, projectors: Iterable[str] | None = None) -> None:
        """Return once every store (or those named) holds what the token's transaction wrote."""
        self.search.wait_for(token, timeout_s, projectors)

    def verify(self) -> None:
        """Raise :class:`~outbox.errors.VerificationFailed` if a record of any store differs from the log."""
        for report in operations.verify(self.side):
            if report["differences"]:
                raise VerificationFailed(f"{report['store']} differs from the log: {report['differences'][0]}")


@contextmanager
def running(
    data_dir: str | Path | None = None,
    projections: Mapping[str, tuple[Projection, str]] | None = None,
    settings: Settings | None = None,
) -> Iterator[App]:
    """Run relay and projectors in this process.

    ``projections`` maps a projector's name to its projection and its store (``"chroma"``, ``"tantivy"``,
    ``"ladybug"``, ``"postgres"``, ...); without it the built-in projections of entities run.
    """
    quiet_unless_configured()
    given = projections or {}
    if settings is None:
        own = {name: Projecting(projection=name, store=store) for name, (_, store) in given.items()}
        overrides: dict[str, Any] = {"data_dir": Path(data_dir)} if data_dir is not None else {}
        if own:
            overrides["projectors"] = own
        settings = load(**overrides)
    with (
        open_read_side(settings, {name: projection for name, (projection, _) in given.items()}) as side,
        Running(side),
        Search(side) as search,
    ):
        yield App(side.write.dsn, search, side)
