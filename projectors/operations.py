"""What people ask of the read side, as functions from plain values to plain values (JSON-able).

The command line calls them here or, when ``outbox up`` holds the embedded stores, in that process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from outbox.database import Connection, connected
from outbox.errors import InvalidEvent, RecordsRefused, SettingsError, VerificationFailed
from projectors import ledger
from projectors.dead_letters import dead_letter, dead_letters, discard_dead_letter
from projectors.forecast import forecast, forecast_repair
from projectors.placement import serving_here
from projectors.query.search import Search
from projectors.rebuild import earlier_generation
from projectors.rebuild import rebuild as build_anew
from projectors.rebuild import rollback as go_back
from projectors.status import status as status_of
from projectors.verify import Report, Verifier
from projectors.wiring import ReadSide

Tell = Callable[[int, int, str], None]
"""Told the records done, 0 (how many there are is not known) and what is being done."""


class _Replaced(Exception):
    """The generation that was verified serves no more."""


@dataclass(frozen=True, slots=True)
class _How:
    """How to verify."""

    quick: bool = False
    repair: bool = False
    dry_run: bool = False


def search(
    side: ReadSide,
    *,
    text: str,
    how: str = "hybrid",
    limit: int = 10,
    target: str | None = None,
    depth: int = 4,
    direction: str = "both",
    edges: Sequence[str] | None = None,
    token: str | None = None,
) -> list[dict[str, Any]]:
    """Answers of one question. ``how``: hybrid, semantic, text, neighbours, paths or find.

    Hits (hybrid, semantic, text, find): ``{"key", "score", "store", "kind", "title", "snippet", "properties"}``,
    hybrid ones also ``"ranks": {STORE: RANK}``. Neighbours: ``{"key", "kind", "name", "edge", "direction",
    "store"}``. Paths: ``{"nodes": [KEY], "edges": [KIND], "store"}``. Best first.
    """
    with Search(side) as asked:
        if token is not None:
            asked.wait_for(token)
        answers: Sequence[Any]
        match how:
            case "hybrid":
                return [{**asdict(f.hit), "ranks": dict(f.ranks)} for f in asked.hybrid(text, limit)]
            case "semantic":
                answers = asked.semantic(text, limit)
            case "text":
                answers = asked.text(text, limit)
            case "neighbours":
                answers = asked.neighbours(text, direction, edges, limit)  # type: ignore[arg-type]
            case "paths":
                if target is None:
                    raise InvalidEvent("paths need two nodes: give --to KEY", "target")
                answers = asked.paths(text, target, depth, limit)
            case "find":
                answers = asked.find(text, limit)
            case _:
                raise InvalidEvent(f"how is {how!r}: hybrid, semantic, text, neighbours, paths or find", "how")
        return [asdict(a) for a in answers]


def status(side: ReadSide) -> dict[str, Any]:
    """See :func:`projectors.status.status`."""
    return status_of(side.layout)


def verify(
    side: ReadSide,
    *,
    projectors: Sequence[str] | None = None,
    repair: bool = False,
    quick: bool = False,
    dry_run: bool = False,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Compare stores with the log; with ``repair`` write what differs and compare again.

    One ``{"projector", "store", "generation", "records", "missing", "stale", "extra", "different", "parked",
    "repaired", "seconds", "slices", "why_full", "differences": [{"key", "stream", "kind", "version"}]}`` a
    projector: what is left to repair, if anything is. At most :data:`projectors.verify.NAMED_MAX` differences are
    named; all are counted. Raises :class:`~outbox.errors.StoreChanged` for a projector whose records are in another
    store than its settings name.

    ``quick`` reads only the slices whose sums differ, ``"slices"`` many, and trusts what records say of themselves
    (:meth:`projectors.verify.Verifier.verify`); ``"slices"`` is null where the whole store was read, ``"why_full"``
    says why although ``quick``.

    ``dry_run`` (of a repair) writes nothing and adds ``"would": {"writes", "removes", "sampled", "seconds"}``, see
    :class:`projectors.forecast.RepairForecast`.
    """
    if dry_run and not repair:
        raise SettingsError("a dry run is one of a repair: verify alone writes nothing")
    how = _How(quick, repair, dry_run)
    return [_verify_one(side, name, how, tell) for name in _names(side, projectors)]


def rebuild(
    side: ReadSide,
    *,
    projector: str,
    check: bool = True,
    rollback: bool = False,
    dry_run: bool = False,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Build a projector's records anew and switch, or go back to the generation before.

    ``{"projector", "store", "generation", "streams", "records", "seconds", "elsewhere": [{"generation", "store",
    "why"}]}``; after a rollback ``{"projector", "generation"}``. ``elsewhere``: older generations in stores that the
    settings do not name (any more), kept for a rollback ("why" is "") or since they could not be dropped (why).
    ``dry_run`` changes nothing and says what would be: ``{"projector", "store", "dry_run"}`` and the fields of
    :class:`projectors.forecast.Forecast`; of a rollback those two again.
    """
    plan, stations = side.plan(projector), side.stations(projector)
    if rollback and dry_run:
        with connected(side.write.dsn) as connection:
            return {"projector": projector, "generation": earlier_generation(connection, plan)}
    if rollback:
        return {"projector": projector, "generation": go_back(plan, stations)}
    if dry_run:
        coming = forecast(plan, stations, check=check)
        return {"projector": projector, "store": plan.store, "dry_run": True, **asdict(coming)}
    done = build_anew(
        plan,
        stations,
        verify=(lambda generation: _must_equal(side, projector, generation, tell)) if check else None,
        progress=(lambda phase, streams, records: tell(records, 0, f"{phase}: {streams} streams")) if tell else None,
    )
    return {**asdict(done), "store": plan.store}


OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "search": search,
    "status": status,
    "verify": verify,
    "rebuild": rebuild,
    "dead_letters": dead_letters,
    "dead_letter": dead_letter,
    "discard_dead_letter": discard_dead_letter,
}


def _names(side: ReadSide, wanted: Sequence[str] | None) -> list[str]:
    """The names given, each of which must be a projector's; all if none is given."""
    for name in wanted or ():
        side.plan(name)
    return list(wanted or side.projecting)


def _must_equal(side: ReadSide, name: str, generation: str, tell: Tell | None) -> None:
    report, _ = _compared(side, name, generation, _How(), tell)
    if not report.clean:
        raise VerificationFailed(
            f"{name}: {sum(report.counts.values())} records of {generation} differ from the log; not switched"
        )


def _verify_one(side: ReadSide, name: str, how: _How, tell: Tell | None) -> dict[str, Any]:
    while True:
        with connected(side.write.dsn) as connection:
            generation = serving_here(connection, name, side.plan(name).store)
        if generation is None:
            raise SettingsError(f"{name} has no generation yet: run `outbox project {name}` or `outbox up` first")
        with suppress(_Replaced):
            report, done = _compared(side, name, generation, how, tell)
            break
    return {
        "projector": name,
        "store": report.store,
        "generation": generation,
        **report.as_dict(),
        **done,
        "seconds": round(report.seconds, 3),
        "slices": report.slices,
        "why_full": report.why_full,
        "differences": [asdict(d) for d in report.differences],
    }


def _compared(
    side: ReadSide, name: str, generation: str, how: _How, tell: Tell | None
) -> tuple[Report, dict[str, Any]]:
    """The last report, and what was written before it or would be. Raises :class:`_Replaced`."""
    said = (lambda records: tell(records, 0, name)) if tell else None
    with connected(side.write.dsn) as connection, side.open_sink(name) as sink:
        sink.prepare(generation)  # a store that was wiped lacks every record, which is to be said and not to fail
        verifier = Verifier(connection, side.plan(name), sink, generation, side.write.registry)
        report = _verified(verifier, connection, said, quick=how.quick)
        if how.dry_run:
            would = forecast_repair(side.plan(name), side.stations(name), sink, verifier, report)
            return report, {"repaired": 0, "would": asdict(would)}
        if not how.repair or report.clean:
            return report, {"repaired": 0}
        try:
            repaired = verifier.repair(report)
        except RecordsRefused as error:
            raise VerificationFailed(f"{name}: cannot be repaired: {error}") from error
        return _verified(verifier, connection, said, quick=how.quick), {"repaired": repaired}


def _verified(verifier: Verifier, connection: Connection, said: Callable[[int], None] | None, *, quick: bool) -> Report:
    """The report, unless it blames a generation that another has replaced meanwhile: nobody feeds that one any more."""
    report = verifier.verify(said, quick=quick)
    known = {g.name: g.state for g in ledger.generations(connection, report.projector)}
    if not report.clean and known.get(report.generation, "retired") == "retired":
        raise _Replaced
    return report
