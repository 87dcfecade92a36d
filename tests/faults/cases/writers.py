"""Writers killed, cut off and slow."""

from __future__ import annotations

import uuid

import psycopg

from outbox.event import NewEvent
from outbox.log.append import append
from tests.faults.faults import fault
from tests.faults.history import Recorder, Tried
from tests.faults.run import Run


def _killed(run: Run, when: str) -> None:
    run.begin(writers=f"writer.commit:{when}:{run.source.randrange(5, 30)}:kill")
    run.died("writer0")
    run.over()
    run.write(1)
    run.appended(40)


@fault("writer: killed before COMMIT")
def _killed_before(run: Run) -> None:
    _killed(run, "before")


@fault("writer: killed after COMMIT")
def _killed_after(run: Run) -> None:
    """Before it could write down that the append had been acknowledged."""
    _killed(run, "after")


@fault("writer: long transaction, cdc", engine="cdc", bound_s=45)
@fault("writer: long transaction")
def _long(run: Run) -> None:
    """A transaction that appended early commits after hundreds of later ones."""
    run.begin()
    path = run.folder / "long.history"
    run.histories.append(path)
    with path.open("a", encoding="utf-8") as file, psycopg.connect(run.dsn) as connection:
        recorder = Recorder(file)
        tried = [
            Tried(str(uuid.uuid4()), f"thing-long{n}", "entity.patched", {"properties": {"p1": n}}) for n in (1, 2)
        ]
        recorder.trying(tried)
        for one in tried:
            append(connection, one.stream, NewEvent(one.type, one.data, uuid.UUID(one.id)))
            connection.execute("INSERT INTO business (id) VALUES (%s)", [one.id])
        run.appended(run.source.randrange(100, 300))
        connection.commit()
        recorder.ended("ok", [one.id for one in tried])
    run.over()
