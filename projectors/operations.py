"""What people ask of the read side, as functions from plain values to plain values (JSON-able).

The command line calls them here or, when ``outbox up`` holds the embedded stores, in that process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from outbox.database import connected
from outbox.errors import InvalidEvent, SettingsError, StoreError, VerificationFailed
from projectors import ledger
from projectors.query.search import Search
from projectors.rebuild import rebuild as build_anew
from projectors.rebuild import rollback as go_back
from projectors.verify import NAMED_MAX, Report, Verifier
from projectors.wiring import ReadSide

Tell = Callable[[int, int, str], None]


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
    """Answers of one question. ``how``: hybrid, semantic, text, neighbours, paths or find."""
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
    """Lag, health, parked streams and dead letters, as the database knows them."""
    with connected(side.write.dsn) as connection:
        events = connection.execute("SELECT coalesce(max(position), 0) FROM outbox.event").fetchone()
        lease = connection.execute(
            "SELECT holder, epoch, expires_at > clock_timestamp() FROM outbox.lease WHERE name = %s",
            [side.settings.relay.name],
        ).fetchone()
        waiting = connection.execute(
            "SELECT count(*) FROM outbox.outbox o WHERE NOT EXISTS (SELECT FROM outbox.relay_cursor c"
            " WHERE c.name = %s AND pg_visible_in_snapshot(o.xid, c.a))",
            [side.settings.relay.name],
        ).fetchone()
        parked = connection.execute("SELECT DISTINCT topic, key FROM outbox.parked ORDER BY 1, 2").fetchall()
        health = {
            p: (h, round(float(age), 1))
            for p, h, age in connection.execute(
                "SELECT projector, health, extract(epoch FROM clock_timestamp() - at) FROM outbox.projector"
            )
        }
        letters = ledger.dead_letters(connection)
        projectors = []
        for name, plan in side.plans().items():
            generation = ledger.serving(connection, name)
            said, age = health.get(name, ("never ran", None))
            projectors.append(
                {
                    "projector": name,
                    "store": plan.store,
                    "generation": generation,
                    "lag": ledger.lag(connection, name, generation, plan.topics) if generation else None,
                    "health": said,
                    "seen_s_ago": age,
                    "dead_letters": sum(d.projector == name and d.generation == generation for d in letters),
                }
            )
    return {
        "log": {"last_position": events[0] if events else 0},
        "relay": {
            "leader": lease[0] if lease and lease[2] else None,
            "epoch": lease[1] if lease else 0,
            "waiting": waiting[0] if waiting else 0,
            "parked": [{"topic": t, "key": k} for t, k in parked],
        },
        "projectors": projectors,
    }


def verify(
    side: ReadSide, *, projectors: Sequence[str] | None = None, repair: bool = False, tell: Tell | None = None
) -> list[dict[str, Any]]:
    """Compare stores with the log; with ``repair`` write what differs and compare again."""
    return [_verify_one(side, name, repair=repair, tell=tell) for name in _names(side, projectors)]


def rebuild(
    side: ReadSide, *, projector: str, check: bool = True, rollback: bool = False, tell: Tell | None = None
) -> dict[str, Any]:
    """Build a projector's records anew and switch, or go back to the generation before."""
    plan, stations = side.plan(projector), side.stations(projector)
    if rollback:
        return {"projector": projector, "generation": go_back(plan, stations)}

    def verified(generation: str) -> None:
        report = _report(side, projector, generation, tell)
        if not report.clean:
            raise VerificationFailed(
                f"{projector}: {len(report.differences)} records of {generation} differ from the log; not switched"
            )

    done = build_anew(
        plan,
        stations,
        verify=verified if check else None,
        progress=(lambda phase, streams, records: tell(records, 0, f"{phase}: {streams} streams")) if tell else None,
    )
    return asdict(done)


def dead_letters(
    side: ReadSide, *, projector: str | None = None, retry: bool = False, streams: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The parked streams; with ``retry`` the projector is asked to try them again."""
    with connected(side.write.dsn) as connection:
        if retry:
            for name in _names(side, [projector] if projector else None):
                ledger.ask_retry(connection, name, streams or None)
        return [asdict(d) for d in ledger.dead_letters(connection, projector)]


OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "search": search,
    "status": status,
    "verify": verify,
    "rebuild": rebuild,
    "dead_letters": dead_letters,
}


def _names(side: ReadSide, wanted: Sequence[str] | None) -> list[str]:
    for name in wanted or ():
        side.plan(name)
    return list(wanted or side.projecting)


def _verify_one(side: ReadSide, name: str, *, repair: bool, tell: Tell | None) -> dict[str, Any]:
    with connected(side.write.dsn) as connection:
        generation = ledger.serving(connection, name)
    if generation is None:
        raise SettingsError(f"{name} has no generation yet: run `outbox project {name}` or `outbox up` first")
    report = _report(side, name, generation, tell, repair=repair)
    repaired = len(report[1].differences) if isinstance(report, tuple) else 0
    final = report[0] if isinstance(report, tuple) else report
    return {
        "projector": name,
        "store": final.store,
        "generation": generation,
        **final.as_dict(),
        "repaired": repaired,
        "seconds": round(final.seconds, 3),
        "differences": [asdict(d) for d in final.differences[:NAMED_MAX]],
    }


def _report(side: ReadSide, name: str, generation: str, tell: Tell | None, *, repair: bool = False) -> Any:
    said = (lambda records: tell(records, 0, name)) if tell else None
    with connected(side.write.dsn) as connection, side.open_sink(name) as sink:
        sink.prepare(generation)
        verifier = Verifier(connection, side.plan(name), sink, generation, side.write.registry)
        report: Report = verifier.verify(said)
        if not repair or report.clean:
            return report
        try:
            verifier.repair(report)
        except StoreError as error:
            raise VerificationFailed(f"{name}: repair failed: {error}") from error
        return verifier.verify(said), report
