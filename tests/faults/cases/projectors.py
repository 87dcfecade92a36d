"""Projectors killed, stopped and replaced; deliveries that come again and out of turn."""

from __future__ import annotations

from tests.faults.faults import fault
from tests.faults.run import Run

KILLED = {
    "killed before the store write": "project.apply.rows:before",
    "killed after the store write": "project.apply.rows:after",
    "killed after the checkpoint": "project.checkpoint:after",
}


def _killed(run: Run, point: str) -> None:
    run.begin()
    run.children["project"].stop()
    run.again("project", point=f"{point}:{run.source.randrange(1, 8)}:kill")
    run.died("project")
    if run.quietly:
        run.stop_writers()
    run.again("project")
    run.over()
    if not run.quietly:
        run.appended(20)


for _name, _point in KILLED.items():
    fault(f"projector: {_name}")(lambda run, point=_point: _killed(run, point))


def _zombie(run: Run, kind: str) -> None:
    """It stands still with a batch in its hands; others take its partitions and go further; then it goes on."""
    run.begin()
    run.caught_up()
    run.children["project"].stop()
    run.again("project", point=f"project.apply.{kind}:before:{run.source.randrange(1, 4)}:pause")
    run.paused("project", 60)
    run.command("project2", "project")
    run.appended(150)
    if run.quietly:
        run.stop_writers()
    run.caught_up(60)
    run.children["project"].resume()
    run.passed("project")
    run.over()
    if not run.quietly:
        run.appended(20)


@fault("projector: late zombie", bound_s=45)
def _late_zombie(run: Run) -> None:
    _zombie(run, "rows")
